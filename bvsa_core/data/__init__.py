"""Recordings and stimuli: published layouts, the store of converted data sets, checks, and exchange with MNE."""

from bvsa_core.data.from_mne import from_mne
from bvsa_core.data.mne_export import to_mne

__all__ = ["from_mne", "to_mne"]
