"""Flow matching and its samplers, for any velocity function."""
