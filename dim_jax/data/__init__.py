"""From files to numpy arrays that the models read."""
