"""Scores of a ranking, the gates of similarity modulation, and intervals."""
