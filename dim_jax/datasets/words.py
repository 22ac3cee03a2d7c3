"""Helpers for English texts that are made by rule."""


def join_with_and(words: tuple[str, ...]) -> str:
    """ "red", "red and white", "red, white and blue"."""
    return " and ".join([*[", ".join(words[:-1])] * (len(words) > 1), words[-1]])


def capitalize_first(text: str) -> str:
    """With a capital letter first."""
    return text[0].upper() + text[1:]
