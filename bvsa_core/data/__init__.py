"""Recordings and stimuli: published layouts, the store of converted data sets, checks, and export to MNE."""

from bvsa_core.data.mne_export import to_mne

__all__ = ["to_mne"]
