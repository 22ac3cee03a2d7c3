"""Sources of edit pairs, by number; pictures are not read yet."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from dim_jax.data.example import LazyImage, RawExample
from dim_jax.datasets.layouts import Rows
from dim_jax.datasets.layouts.sharegpt4o import ShareGPT4oRows
from dim_jax.datasets.layouts.ultra_edit import UltraEditRows
from dim_jax.errors import InputError, check, check_unicode
from dim_jax.storage.jsonl import read_objects
from dim_jax.storage.paths import read_if_exists, resolve_within

INDEX_FOLDER = "index"  # folder for the index of archives
EXAMPLE = '{"source": "before.png", "target": "after.png", "prompt": "Make it blue."}'


class JsonlPairs:
    """A jsonl of `source`, `target` (files, from its folder) and `prompt`; with `id`, or numbered."""

    def __init__(self, path: Path):
        """
        Raises:
            InputError: the file cannot be read, a line is not such an object, or an id occurs twice.
        """
        self._folder = path.parent
        self._rows: list[dict] = []
        keys = set[str]()
        for where, row in read_objects(path):
            texts = [row.get(name) for name in ("source", "target", "prompt")]
            if not all(isinstance(text, str) and text.strip() for text in texts):
                raise InputError(f'{where}: needs the texts "source", "target" and "prompt": {EXAMPLE}')
            check_unicode(json.dumps(row, ensure_ascii=False), where)
            row["id"] = str(row.get("id", len(self._rows) + 1))
            if row["id"] in keys:
                raise InputError(f'{where}: the id "{row["id"]}" occurs twice. Give each pair its own id.')
            keys.add(row["id"])
            self._rows.append(row)

    def __len__(self) -> int:
        return len(self._rows)

    def raw(self, index: int) -> RawExample:
        row = self._rows[index]
        source, target = (LazyImage(row[name], partial(read_picture, self._folder, row[name])) for name in ("source", "target"))
        return RawExample(row["id"], (row["prompt"],), None, source, target)


class Source(NamedTuple):
    """Rows and what they are of: the `kind` chooses the filters, the `name` stands in ids, wherever the files lie.

    `spec` is what `open_source` opens again, in another process too.
    """

    name: str
    kind: str
    rows: Rows
    spec: str


KINDS: dict[str, Callable[[Path], Rows]] = {
    "ultraedit": lambda folder: UltraEditRows(folder, "edit", folder / INDEX_FOLDER),
    "sharegpt4o": lambda folder: ShareGPT4oRows(folder, "edit", folder / INDEX_FOLDER),
    "pairs": JsonlPairs,
}


def open_source(spec: str) -> Source:
    """From `KIND:PATH`: `pairs:mine.jsonl`, or the folder of a published set. The index of its archives is written there.

    Raises:
        InputError: the kind is unknown, or there are no pairs of it.
    """
    kind, _, path = spec.partition(":")
    check(kind in KINDS and path, f'"{spec}" is not a source of pairs. Write {", ".join(f"{name}:PATH" for name in KINDS)}.')
    check(Path(path).exists(), f"{path}: cannot be read, since there is no such file or folder. Give the {kind} to build from.")
    rows = KINDS[kind](Path(path))
    check(len(rows), f"{path} has no pairs of {kind}. Give another folder.")
    return Source(f"{kind}:{Path(path).name}", kind, rows, f"{kind}:{Path(path).resolve()}")


def read_picture(folder: Path, name: str) -> bytes:
    """The bytes of a picture that a data set names, from its folder.

    Raises:
        InputError: it is outside of the folder, or cannot be read.
    """
    data = read_if_exists(path := resolve_within(folder, name))
    if data is None:
        raise InputError(f"{path}: the picture cannot be read, since there is no such file. Check its path.")
    return data
