"""The same training step compiled ahead of time, for machines that are not here: what it holds, sends and takes at least."""
