"""Packages of an extra, imported where they are needed."""

from __future__ import annotations

from types import ModuleType

from bvsa_core.errors import UserError


def import_mne(needed_by: str) -> ModuleType:
    """MNE-Python.

    Raises:
        UserError: it is not installed, or broken.
    """
    try:
        import mne
    except ImportError as error:
        raise UserError(
            f"MNE cannot be imported ({error}); {needed_by} need: pip install 'fovblur[preprocess]'"
        ) from error
    return mne
