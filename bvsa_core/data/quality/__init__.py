"""Checks of data sets: files, bad samples, and the reliability of recordings."""
