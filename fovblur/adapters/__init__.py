"""Gaussian blurs with the names and arguments of other libraries: change the import, keep the call."""
