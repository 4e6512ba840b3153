"""Recordings and images: readers, layouts, the store of converted data sets, and the synthetic data set."""

from bvsa_core.data.mne_export import to_mne

__all__ = ["to_mne"]
