"""Ahead-of-time compilation of the training step for other machines: its memory, communication and least time."""
