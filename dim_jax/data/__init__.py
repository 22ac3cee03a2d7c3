"""Training input: from files to the numpy arrays that the models read."""
