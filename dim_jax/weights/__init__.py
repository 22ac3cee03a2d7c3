"""Conversion between published checkpoints and ours, by one table that is read both ways."""
