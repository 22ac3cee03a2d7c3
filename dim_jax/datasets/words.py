"""English that every text made by rule needs, and how long such texts are."""

from collections.abc import Sequence


def listed(words: tuple[str, ...]) -> str:
    """ "red", "red and white", "red, white and blue"."""
    return " and ".join([*[", ".join(words[:-1])] * (len(words) > 1), words[-1]])


def capital(text: str) -> str:
    """With a capital letter first."""
    return text[0].upper() + text[1:]


def lengths(texts: Sequence[str]) -> dict[str, float]:
    """Words of the mean and of the longest of some texts."""
    found = [len(text.split()) for text in texts] or [0]
    return {"mean": round(sum(found) / len(found), 1), "longest": max(found)}
