"""Helpers for English texts that are made by rule, and their lengths."""

from collections.abc import Sequence


def listed(words: tuple[str, ...]) -> str:
    """ "red", "red and white", "red, white and blue"."""
    return " and ".join([*[", ".join(words[:-1])] * (len(words) > 1), words[-1]])


def capital(text: str) -> str:
    """With a capital letter first."""
    return text[0].upper() + text[1:]


def lengths(texts: Sequence[str]) -> dict[str, float]:
    """The mean and the largest number of words of texts."""
    counts = [len(text.split()) for text in texts] or [0]
    return {"mean": round(sum(counts) / len(counts), 1), "longest": max(counts)}
