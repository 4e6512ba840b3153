"""Processes that work together: the ranks that torchrun starts, and independent tasks."""
