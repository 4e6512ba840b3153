"""Benchmarks: python -m benchmarks --device cpu --json FILE."""
