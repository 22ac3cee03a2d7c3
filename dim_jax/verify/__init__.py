"""`dim verify`: checks the tensors of a checkpoint, and every stage of an edit against PyTorch or a recording of PyTorch."""
