"""Features of images and texts: encoders, views and the feature bank."""
