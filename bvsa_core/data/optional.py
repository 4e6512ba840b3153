"""Packages of an extra, imported where they are needed."""

from __future__ import annotations

from types import ModuleType

from bvsa_core.errors import UserError


def import_mne(needed_by: str) -> ModuleType:
    """MNE-Python.

    Raises:
        UserError: it is not installed.
    """
    try:
        import mne
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed; {needed_by} need: pip install 'fovblur[preprocess]'") from error
    return mne
