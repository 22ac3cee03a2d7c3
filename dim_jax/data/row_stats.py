"""Statistics of the rows of a data set, for plans: the size of the picture, and the number of tokens of the texts."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from dim_jax.data.example import Texts
from dim_jax.errors import InputError
from dim_jax.processing.chat import USER_HEADER, ChatTokenizer


@dataclass(frozen=True)
class RowStats:
    """One number for each row.

    Attributes:
        width: pixels of the source picture, or of the target if there is no source. So is `height`.
        texts: tokens of the longest text.
        blueprint: tokens of the blueprint; 0 without one.
    """

    width: Int[np.ndarray, " n"]
    height: Int[np.ndarray, " n"]
    texts: Int[np.ndarray, " n"]
    blueprint: Int[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.texts)


COLUMNS = tuple(field.name for field in fields(RowStats))


@runtime_checkable
class Countable(Protocol):
    """Rows whose statistics need no decoded pictures."""

    def __len__(self) -> int: ...

    def row_texts(self, index: int) -> Texts: ...

    def size(self, index: int) -> tuple[int, int]: ...


def count_rows(rows: Countable, tokenizer: ChatTokenizer | None, *, max_bad_rows: int = 0) -> RowStats:
    """The statistics of all rows; without a tokenizer, token counts are 0. A row that cannot be read gets zeros.

    Raises:
        InputError: more than `max_bad_rows` rows cannot be read; names the first.
    """
    sizes, texts, bad = list[tuple[int, int]](), list[Texts](), list[InputError]()
    for row in range(len(rows)):
        try:
            size, row_texts = rows.size(row), rows.row_texts(row)
        except InputError as error:
            bad.append(error)
            if len(bad) > max_bad_rows:
                message = f"More than {max_bad_rows} rows cannot be used. The first: {bad[0]}" if max_bad_rows else str(error)
                raise InputError(message) from error
            size, row_texts = (0, 0), Texts(("",), None)
        sizes.append(size)
        texts.append(row_texts)
    columns = np.array(sizes, np.int32).reshape(-1, 2).T, token_counts(texts, tokenizer).T
    return RowStats(*np.concatenate(columns))


def token_counts(rows: Sequence[Texts], tokenizer: ChatTokenizer | None) -> Int[np.ndarray, "n 2"]:
    """The columns `texts` and `blueprint` of `RowStats`: the most tokens that each text adds to a turn."""
    if tokenizer is None:
        return np.zeros((len(rows), 2), np.int32)
    texts = _token_increase({text for row in rows for text in row.texts}, tokenizer, joined=True)
    blueprints = _token_increase({row.blueprint or "" for row in rows}, tokenizer, joined=False)  # always after a picture
    counts = [(max(texts[text] for text in row.texts), blueprints[row.blueprint or ""]) for row in rows]
    return np.array(counts, np.int32).reshape(-1, 2)


def _token_increase(texts: set[str], tokenizer: ChatTokenizer, *, joined: bool) -> dict[str, int]:
    """The tokens of each text after a picture; if `joined`, also directly after the header, and the larger number counts."""
    lengths = dict(zip(texts, tokenizer.lengths(list(texts)), strict=True))
    if not joined:
        return lengths
    (header,) = tokenizer.lengths([f"{USER_HEADER}a"])
    with_header = tokenizer.lengths([USER_HEADER + text for text in lengths])
    return {text: max(count, longer - header + 1) for (text, count), longer in zip(lengths.items(), with_header, strict=True)}
