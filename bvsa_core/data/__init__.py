"""Recordings and pictures: readers, layouts, and the synthetic data set."""
