"""Tables in Markdown, for the cards of data sets and models."""

from collections.abc import Iterable, Sequence
from typing import Any


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown; rows that are too short are filled up with empty cells."""
    lines = [head, ["---"] * len(head), *([*row, *[""] * (len(head) - len(row))] for row in rows)]
    return "\n".join("| " + " | ".join(" ".join(str(cell).replace("|", "/").split()) for cell in line) + " |" for line in lines)
