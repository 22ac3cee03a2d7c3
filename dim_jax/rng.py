"""Random numbers by name: each purpose has a key of its own."""

from zlib import crc32

import numpy as np

NULL_ROWS = "null_rows"  # the new rows of a null table that grows


def stream(seed: int, name: str, *numbers: int) -> np.random.SeedSequence:
    """The seed of a purpose, such as "params/sana", and of `numbers` within it (a step, a position in the batch)."""
    return np.random.SeedSequence(seed % 2**64, spawn_key=(crc32(name.encode()), *numbers))


def key_seed(seed: int, name: str) -> int:
    """The same as a seed for `jax.random.key`."""
    return int(stream(seed, name).generate_state(1)[0])
