"""What a plan must know of the rows of a source: how large their pictures and how long their texts are, counted once.

`dim index` writes it beside the source for every run (SOURCE/index/edit.npz); a run that needs it and finds none counts for itself.
`dim index` counts in chunks of rows, which outlive a kill, by several processes if there are many rows.
"""

import json
import shutil
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int
from rich.console import Console
from rich.progress import track

from dim_jax.data.chat import USER_HEADER, ChatTokenizer
from dim_jax.data.index_files import open_index, write_index
from dim_jax.data.workers import process_pool
from dim_jax.errors import InputError
from dim_jax.paths import AnyPath

CHUNK = 2048  # rows between two saves
UNUSABLE = -1


class Texts(NamedTuple):
    """The texts of a row, without its pictures: wordings of the instruction or captions; and the blueprint, if there is one."""

    texts: tuple[str, ...]
    blueprint: str | None


@runtime_checkable
class Countable(Protocol):
    """A source whose rows can be counted without decoding pictures."""

    def __len__(self) -> int: ...

    def row_texts(self, index: int) -> Texts: ...

    def size(self, index: int) -> tuple[int, int]: ...


@dataclass(frozen=True)
class RowStats:
    """One number for each row of a source; `texts` is -1 for a row that cannot be used.

    Attributes:
        width: pixels of the source picture, or of the target where there is no source; 0 where nobody asked. So is `height`.
        texts: tokens of the longest wording.
        blueprint: tokens of the blueprint; 0 where there is none.
    """

    width: Int[np.ndarray, " n"]
    height: Int[np.ndarray, " n"]
    texts: Int[np.ndarray, " n"]
    blueprint: Int[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.texts)


COLUMNS = tuple(field.name for field in fields(RowStats))


class BadRow(NamedTuple):
    """A row that cannot be used, from 1 on in its split, and why."""

    row: int
    error: str
    split: str = "train"


class RowCounter(NamedTuple):
    """How rows are counted: `tokenizer` None counts no tokens; `sized` reads the head of every picture."""

    source: Countable
    tokenizer: ChatTokenizer | None
    sized: bool

    @property
    def header(self) -> dict:
        """What a file of facts says of itself."""
        known = self.tokenizer
        return {
            "rows": len(self.source), "sized": self.sized, "tokenizer": known and known.name, "vocabulary": known and known.digest,
        }  # fmt: skip

    def facts(self, rows: Iterable[int]) -> tuple[np.ndarray, list[BadRow]]:
        """The facts (n, 4) of some rows, in the order of `RowStats`, and those that cannot be used."""
        sizes, told, bad = [], [], []
        for row in rows:
            try:
                sizes.append(self.source.size(row) if self.sized else (0, 0))
                told.append(self.source.row_texts(row))
            except InputError as error:
                bad.append(BadRow(row + 1, str(error)))
                sizes, told = [*sizes[: len(told)], (0, 0)], [*told, None]
        known = [one for one in told if one]
        texts = self._tokens({text for one in known for text in one.texts}, joined=True)
        blueprints = self._tokens({one.blueprint or "" for one in known}, joined=False)  # only ever after a picture
        tokens = [(max(texts[text] for text in one.texts), blueprints[one.blueprint or ""]) if one else (UNUSABLE, 0) for one in told]
        return np.array([(*size, *counted) for size, counted in zip(sizes, tokens, strict=True)], np.int32).reshape(-1, len(COLUMNS)), bad

    def _tokens(self, texts: set[str], *, joined: bool) -> dict[str, int]:
        """At most so many tokens does each text add to a turn: after a picture, or also joined to the header itself."""
        if self.tokenizer is None:
            return dict.fromkeys(texts, 0)
        alone = dict(zip(texts, self.tokenizer.lengths(list(texts)), strict=True))
        if not joined:
            return alone
        (before,) = self.tokenizer.lengths([f"{USER_HEADER}a"])
        both = self.tokenizer.lengths([USER_HEADER + text for text in alone])
        return {text: max(count, longer - before + 1) for (text, count), longer in zip(alone.items(), both, strict=True)}


def count(counting: RowCounter, *, allowed: int = 0) -> RowStats:
    """Count the rows of a source, for this process alone.

    Raises:
        InputError: more than `allowed` rows cannot be used; names the file and line of the first.
    """
    table, bad = counting.facts(range(len(counting.source)))
    _check(bad, allowed)
    return RowStats(*table.T)


def write_facts(
    counting: RowCounter,
    path: AnyPath,
    *,
    allowed: int = 0,
    workers: int = 0,
    console: Console | None = None,
    known: Sequence[BadRow] = (),
) -> list[BadRow]:
    """Count the rows of a source, and write the result to `path`. An interrupted call is continued by the next.

    Args:
        counting: travels to the workers by pickle.
        path: the file to make; its folder is made too.
        allowed: how many rows may be unusable; they are never planned.
        workers: processes that count; 0: this one.
        console: where a bar is shown, if it is a terminal.
        known: rows elsewhere that cannot be used, which count as well.

    Returns:
        The rows that cannot be used, after those.

    Raises:
        InputError: a row cannot be used, and more than `allowed` are so; names its file and line. Or nothing can be written there.
    """
    header = json.dumps(counting.header)
    scratch = path.with_name(f".{path.stem}.partial")
    try:
        scratch.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path.parent}: cannot be written ({error.strerror}). Choose another folder for the index.") from error
    starts = range(0, len(counting.source), CHUNK)
    parts, bad = [], list(known)
    _check(bad, allowed)
    pool = process_pool(workers, _begin, counting, scratch, header) if workers else nullcontext()
    with pool as others:
        _begin(counting, scratch, header)
        done = map(_chunk, starts) if others is None else others.map(_chunk, starts)
        shown = console is not None and console.is_terminal
        for part, failed in track(done, "counting rows", len(starts), console=console, disable=not shown, transient=True):
            parts.append(part)
            bad += failed
            _check(bad, allowed)
    table = np.concatenate(parts)
    _write(path, table, bad, header)
    shutil.rmtree(scratch, ignore_errors=True) if isinstance(scratch, Path) else scratch.rmtree(missing_ok=True)
    return bad


def read_facts(path: AnyPath, counting: RowCounter) -> RowStats:
    """What `write_facts` wrote to `path`.

    Raises:
        InputError: the file is damaged; or it was counted of another number of rows, with another tokenizer, or without sizes.
    """
    table, _, header = _read(path)
    known, wanted = json.loads(header), counting.header
    again = "Index the source again: dim index --overwrite."
    if known["rows"] != wanted["rows"]:
        raise InputError(f"{path}: counted of {known['rows']:,} rows, but the source has {wanted['rows']:,}. {again}")
    if wanted["vocabulary"] is not None and known["vocabulary"] != wanted["vocabulary"]:
        raise InputError(f"{path}: counted with the tokenizer {known['tokenizer']}, but this run has {wanted['tokenizer']}. {again}")
    if counting.sized and not known["sized"]:
        raise InputError(f"{path}: has no sizes of pictures. {again}")
    return RowStats(*table.T)


def _check(bad: list[BadRow], allowed: int) -> None:
    if len(bad) > allowed:
        raise InputError(bad[0].error if allowed == 0 else f"More than {allowed} rows cannot be used. The first: {bad[0].error}")


# What a process counts, and where it puts its chunks: set once, since a source may be large to send.
_work: tuple[RowCounter, AnyPath, str]


def _begin(counting: RowCounter, scratch: AnyPath, header: str) -> None:
    global _work
    _work = counting, scratch, header


def _chunk(start: int) -> tuple[np.ndarray, list[BadRow]]:
    """The facts of `CHUNK` rows, from the scratch folder if they are there already."""
    counting, scratch, header = _work
    path = scratch / f"{start:09}.npz"
    if path.exists():
        table, bad, known = _read(path)
        if known == header:
            return table, bad
    table, bad = counting.facts(range(start, min(start + CHUNK, len(counting.source))))
    if not bad:  # or it is counted again, since somebody may have mended it
        _write(path, table, bad, header)
    return table, bad


def _write(path: AnyPath, table: np.ndarray, bad: list[BadRow], header: str) -> None:
    write_index(path, table=table, header=np.array(header), bad=np.array(json.dumps(bad)))


def _read(path: AnyPath) -> tuple[np.ndarray, list[BadRow], str]:
    with open_index(path) as file:
        return file["table"], [BadRow(*one) for one in json.loads(str(file["bad"]))], str(file["header"])
