"""Blur that grows with eccentricity, as acuity falls in the human eye."""
