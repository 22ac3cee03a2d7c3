"""Stable pseudo-random numbers of texts, which do not depend on the rest of a data set."""

import hashlib


def stable_hash(seed: int, text: str) -> int:
    """A number below 2^64 from a seed and a text, the same everywhere."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{text}".encode()).digest()[:8])
