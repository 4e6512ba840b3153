"""Images and texts to features: encoders, views and the feature bank."""
