"""A folder of pictures and edit pairs: each picture is stored once, and pairs refer to pictures by number.

    pictures.array_record   record i: picture i, a lossless RGB WebP
    pictures.jsonl          line i: the fields of picture i (`Picture` without its bytes)
    train.array_record      records: one pair each, JSON: source, target (numbers of pictures), rule, instructions, blueprint
    test.array_record       the same; no picture is in pairs of both splits
    known.array_record      the same; the source is of the test split, the target of the training split

Records are written one by one ("group_size:1"), so each can be read alone, in any order, by any process.
"""

import codecs
import io
import json
import os
from collections.abc import Iterable, Sequence, Sized
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from dim_jax.data.example import SPLITS, Example, Kind, LazyImage, RawExample, Split
from dim_jax.data.records import Records, new_records
from dim_jax.datasets.layouts import Layout
from dim_jax.errors import InputError, check
from dim_jax.processing.pictures import read_picture
from dim_jax.storage import folders
from dim_jax.storage.local_cache import cached_path
from dim_jax.storage.paths import AnyPath, as_path, open_regular, read_errors

PairSplit = Literal["train", "test", "known"]
PAIR_SPLITS: tuple[PairSplit, ...] = (*SPLITS, "known")
PICTURES, ROWS = "pictures.array_record", "pictures.jsonl"
AGAIN = "Build the data set again."
Stored = TypeVar("Stored", bound="PictureRow | Pair")
FILES = (PICTURES, ROWS, *(f"{split}.array_record" for split in PAIR_SPLITS))

DATASET = folders.Kind("data set folder", lambda folder: all((folder / name).is_file() for name in FILES))


@dataclass(frozen=True)
class PictureRow:
    """The metadata of a picture.

    Attributes:
        set: who drew it, such as "noto"; with `code` it identifies the picture.
        code: what is drawn, such as the code points "1f44d-1f3fd".
        name: what is drawn, in words.
        split: "train" or "test".
        captions: texts that describe the picture.
    """

    set: str
    code: str
    name: str
    split: Split
    captions: tuple[str, ...]

    @property
    def key(self) -> str:
        return f"{self.set}/{self.code}"


@dataclass(frozen=True)
class Picture(PictureRow):
    """A picture: its metadata and its file, a lossless WebP."""

    webp: bytes


@dataclass(frozen=True)
class Pair:
    """An edit: the numbers of two pictures, the rule that joins them, the instruction in several wordings, the blueprint."""

    source: int
    target: int
    rule: str
    instructions: tuple[str, ...]
    blueprint: str


def encode_webp(pixels: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """The bytes of `Picture.webp` for RGB pixels: lossless, and the same every time."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", lossless=True, quality=50, method=3)  # half the time of the smallest, and 2 % larger
    return file.getvalue()


def decode_webp(webp: bytes) -> Image.Image:
    """The RGB picture in `Picture.webp`."""
    return read_picture(io.BytesIO(webp), "a picture of a data set")


def pair_split(source: Split, target: Split) -> PairSplit | None:
    """The split of a pair from those of its pictures; None: it has no split."""
    if source == target:
        return source
    return "known" if source == "test" else None


def write_pairs(folder: str | os.PathLike, pictures: Iterable[Picture], pairs: Iterable[Pair]) -> None:
    """Write the files of this module into an existing folder. The same arguments give the same bytes.

    Pictures are consumed one by one, then pairs; they need not all be in memory.

    Raises:
        ValueError: the source of a pair is of the training split and its target of the test split.
        InputError: the package `array_record` is missing.
    """
    folder, keys = Path(folder), list[tuple[str, Split]]()
    with ExitStack() as opened:
        pixels = opened.enter_context(new_records(folder / PICTURES))
        with open(folder / ROWS, "w", encoding="utf-8") as file:
            for picture in pictures:
                pixels.write(picture.webp)
                row = asdict(picture)
                del row["webp"]
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                keys.append((picture.key, picture.split))
        splits = {split: opened.enter_context(new_records(folder / f"{split}.array_record")) for split in PAIR_SPLITS}
        for pair in pairs:
            (source, of_source), (target, of_target) = keys[pair.source], keys[pair.target]
            split = pair_split(of_source, of_target)
            if split is None:
                raise ValueError(f"{source} is of the {of_source} split, {target} of the {of_target} split; such a pair is not allowed.")
            splits[split].write(json.dumps(asdict(pair), ensure_ascii=False).encode())


def read_pictures(folder: str | os.PathLike) -> list[Picture]:
    """Every picture of a folder, in order, its file as it is.

    Raises:
        InputError: a file is missing or damaged, or `array_record` is not installed.
    """
    folder = as_path(folder)
    rows, files = _read_rows(folder / ROWS), _records(folder / PICTURES).all()
    _check_count(folder, rows, files)
    return [Picture(**vars(row), webp=file) for row, file in zip(rows, files, strict=True)]


def read_pairs(folder: str | os.PathLike, split: PairSplit) -> list[Pair]:
    """Every pair of a split, in order. Errors as in `read_pictures`."""
    folder = as_path(folder)
    pictures, records = len(_records(folder / PICTURES)), _records(folder / f"{split}.array_record")
    return [_read_pair(record, f"{records.path}, pair {number}", pictures) for number, record in enumerate(records.all())]


class Pairs(Sequence[Example]):
    """The examples of a folder: `pairs[i]` reads and decodes the i-th.

    Args:
        folder: what `write_pairs` wrote.
        split: "train" or "test", of pairs "known" too.
        kind: "edit" for pairs, "caption" for every picture of the split with its captions.

    Raises:
        InputError: a file is missing or damaged (also when reading an example), or `array_record` is not installed.
    """

    def __init__(self, folder: str | os.PathLike, split: PairSplit, kind: Kind):
        folder = as_path(folder)
        self._rows = _read_rows(folder / ROWS)
        self._pictures = _records(folder / PICTURES)
        _check_count(folder, self._rows, self._pictures)
        self._pairs = _records(folder / f"{split}.array_record") if kind == "edit" else None
        self._picture_numbers = [number for number, row in enumerate(self._rows) if row.split == split]

    def __len__(self) -> int:
        return len(self._picture_numbers) if self._pairs is None else len(self._pairs)

    def __getitem__(self, index: int) -> Example:
        return self.raw(index).decoded()

    def raw(self, index: int) -> RawExample:
        """An example with its pictures not read yet."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"Example {index} of {len(self)}.")
        index = int(index) % len(self)
        if self._pairs is None:
            number = self._picture_numbers[index]
            return RawExample(self._rows[number].key, self._rows[number].captions, None, None, self._picture(number))
        pair = _read_pair(self._pairs[index], f"{self._pairs.path}, pair {index}", len(self._rows))
        key = f"{self._rows[pair.source].key}>{self._rows[pair.target].key}"
        pictures = self._picture(pair.source), self._picture(pair.target)
        return RawExample(key, pair.instructions, pair.blueprint, *pictures, pair.rule)

    def _picture(self, number: int) -> LazyImage:
        return LazyImage(f"{self._pictures.path}, picture {number}", partial(self._pictures.__getitem__, number))


def _records(path: AnyPath) -> Records:
    return Records(path, missing="Give a folder that `dim build-data` made.", damaged=AGAIN)


def _check_count(folder: AnyPath, rows: Sequence[PictureRow], files: Sized) -> None:
    check(len(files) == len(rows), f"{folder}: {PICTURES} holds {len(files)} pictures, but {ROWS} has {len(rows)} lines. {AGAIN}")


def _read_rows(path: AnyPath) -> list[PictureRow]:
    check(path.is_file(), f"{path}: no such file. Give a folder that `dim build-data` made.")
    with open_regular(cached_path(path)) as file, read_errors(path):
        lines = file.read().removeprefix(codecs.BOM_UTF8).splitlines()
    rows = [_parse(PictureRow, line, f"{path}, line {number}", "the row of a picture") for number, line in enumerate(lines, 1)]
    for number, row in enumerate(rows, 1):
        check(_are_texts(row.captions), f"{path}, line {number}: a caption is empty, or there is none. {AGAIN}")
    return rows


def _read_pair(record: bytes, where: str, pictures: int) -> Pair:
    pair = _parse(Pair, record, where, "a pair")
    for number in (pair.source, pair.target):
        check(0 <= number < pictures, f"{where}: is of picture {number}, but there are {pictures}, from 0 on. {AGAIN}")
    check(_are_texts(pair.instructions), f"{where}: an instruction is empty, or there is none. {AGAIN}")
    return pair


def _are_texts(texts: Sequence[str]) -> bool:
    return bool(texts) and all(map(str.strip, texts))


def _parse(kind: type[Stored], data: bytes, where: str, name: str) -> Stored:
    """A dataclass from its fields as JSON, each of its declared type."""
    try:
        return TypeAdapter(kind).validate_json(data, strict=True)
    except ValidationError as error:
        problem: Any = error.errors()[0]
        reason = ": ".join([*map(str, problem["loc"]), problem["msg"]])
        raise InputError(f"{where}: is {'damaged' if problem['type'] == 'json_invalid' else f'not {name}'} ({reason}). {AGAIN}") from error


LAYOUT = Layout(
    lambda path: (path / PICTURES).exists(),
    lambda path, kind, index_folder, split: Pairs(path, split, kind),
    f"{PICTURES} and others of `dim build-data`",
    PAIR_SPLITS,
)
