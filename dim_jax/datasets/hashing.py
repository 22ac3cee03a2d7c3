"""Chance that nothing can move: numbers that follow from a text, whatever else is in a data set."""

import hashlib


def stable_hash(seed: int, text: str) -> int:
    """A number below 2^64 that follows from a seed and a text."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{text}".encode()).digest()[:8])
