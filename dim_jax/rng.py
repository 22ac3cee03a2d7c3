"""Random numbers by name: what is drawn for one purpose never comes from the key of another."""

from zlib import crc32

import numpy as np

NULL_ROWS = "null_rows"  # the name of what a null table grows by


def stream(seed: int, name: str, *numbers: int) -> np.random.SeedSequence:
    """The source of the random numbers of a purpose, such as "params/sana", and of `numbers` (a step, a place) within it."""
    return np.random.SeedSequence(seed % 2**64, spawn_key=(crc32(name.encode()), *numbers))


def key_seed(seed: int, name: str) -> int:
    """The same for `jax.random.key`."""
    return int(stream(seed, name).generate_state(1)[0])
