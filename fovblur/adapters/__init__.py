"""Gaussian blurs under the names and argument orders of other libraries: change the import, keep the call."""
