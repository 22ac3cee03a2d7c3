"""Published checkpoints to ours and back, through one table read both ways."""
