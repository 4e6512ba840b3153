"""Published data sets by name: where their files are, and how they are fetched and checked."""
