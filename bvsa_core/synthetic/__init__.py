"""The embedded default data set: rendered images and simulated recordings."""
