"""A checkpoint checked on a user's machine: its tensors, and every stage of an edit against PyTorch or what PyTorch computed elsewhere."""
