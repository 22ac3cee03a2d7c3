"""Writes the shards of `dim prepare`, each from a range of a layout's rows; every worker runs this.

A row becomes a `tf.train.Example` as TFDS reads it, with the unchanged bytes of its picture files. Every picture is decoded once to find
bad ones now instead of in a training run. The same source gives the same bytes.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from dim_jax.data.example import Kind, LazyImage, RawExample, Texts
from dim_jax.data.records import new_records
from dim_jax.data.row_stats import COLUMNS, RowStats, token_counts
from dim_jax.data.workers import check_interrupted
from dim_jax.datasets.layouts import SplitRows, open_splits
from dim_jax.datasets.statistics import DatasetStatistics
from dim_jax.errors import InputError
from dim_jax.processing.chat import ChatTokenizer
from dim_jax.processing.pictures import read_picture
from dim_jax.storage.folders import new_file, write_json
from dim_jax.storage.paths import AnyPath

open_rows = cache(open_splits)  # once in each process, since a file is read to its end to find its lines
SAMPLE = 32  # rows that are read to estimate the size of all


class SplitSource(NamedTuple):
    """The rows of a split, as a worker opens them, and the tokenizer that counts their texts."""

    source: AnyPath
    layout: str
    kind: Kind
    split: str
    work_folder: AnyPath
    tokenizer: str | None


class Shard(NamedTuple):
    """Rows from `start` to `stop` (exclusive), the path of their file, and of its info, which is written last."""

    rows: SplitSource
    start: int
    stop: int
    path: AnyPath
    info_path: AnyPath


class BadRow(NamedTuple):
    """A row that cannot be used: its number in its split from 1 on, and the reason."""

    row: int
    error: str


class ShardInfo(NamedTuple):
    """A finished shard: bytes of its records, SHA-256 of its file, counts, statistics and rules of its rows, and bad rows."""

    size: int
    sha256: str
    statistics: DatasetStatistics
    stats: RowStats
    rules: list[str]
    bad: list[BadRow]


def tfds_features(kind: Kind) -> Any:
    """The TFDS features of a kind of rows; pictures are RGB."""
    features = {
        "key": tfds.features.Text(doc="names the row"),
        "texts": tfds.features.Sequence(tfds.features.Text(), doc="wordings of the instruction, or captions; each says it all"),
        "target": tfds.features.Image(doc="the picture to paint"),
    }
    if kind != "caption":
        features["source"] = tfds.features.Image(doc="the picture to edit")
        features["blueprint"] = tfds.features.Text(doc="the edit as a designer writes it, or its answer about a result; empty without one")
        features["rule"] = tfds.features.Text(doc="how the target follows from the source; empty without one")
    return tfds.features.FeaturesDict(features)


def estimate_bytes(rows: SplitRows) -> int:
    """The approximate bytes of all rows, from a sample; bad rows are skipped."""
    count, sizes = len(rows.numbers), list[int]()
    for number in range(0, count, -(-count // SAMPLE)):
        with suppress(InputError):
            sizes.append(sum(len(image.read()) for image in _images(rows.raw(number)).values()))
    return sum(sizes) * count // max(len(sizes), 1)


def write_shard(shard: Shard) -> None:
    """Write a file, complete or not at all, then its info. Rows that cannot be used are left out and listed there.

    Raises:
        InputError: a file cannot be written.
    """
    rows = shard.rows
    opened, features = open_rows(rows.source, rows.layout, rows.kind, rows.work_folder)[rows.split], tfds_features(rows.kind)
    serializer, statistics = tfds.core.ExampleSerializer(features.get_serialized_info()), DatasetStatistics()
    sizes, texts, rules, bad = list[tuple[int, int]](), list[Texts](), list[str](), list[BadRow]()
    with new_file(shard.path) as scratch:
        with new_records(scratch) as file:
            for number in range(shard.start, shard.stop):
                check_interrupted()
                try:
                    row = opened.raw(number)
                    images = _images(row)
                    files = {name: image.read() for name, image in images.items()}
                    pixels = {name: read_picture(io.BytesIO(files[name]), image.name).size for name, image in images.items()}
                except InputError as error:
                    bad.append(BadRow(number + 1, str(error)))
                    continue
                example: dict[str, Any] = {"key": row.key, "texts": list(row.texts)}
                example |= {name: io.BytesIO(data) for name, data in files.items()}  # arrays would need TensorFlow
                example |= {"blueprint": row.blueprint or "", "rule": row.rule} if rows.kind != "caption" else {}
                # Maps of protobuf have no fixed order, so the checksum would change each time.
                record = serializer.get_tf_example(features.encode_example(example)).SerializeToString(deterministic=True)
                file.write(record)
                statistics += DatasetStatistics.from_row(row, pixels, len(record))
                sizes.append(pixels.get("source", pixels["target"]))
                texts.append(Texts(row.texts, row.blueprint))
                rules.append(row.rule)
        with scratch.open("rb") as stored:
            digest = hashlib.file_digest(stored, "sha256").hexdigest()
    columns = np.concatenate([np.array(sizes, np.int32).reshape(-1, 2).T, token_counts(texts, _tokenizer(rows.tokenizer)).T])
    info = {"size": statistics.sums.get("bytes", 0), "sha256": digest, "tally": vars(statistics), "rules": rules, "bad": bad}
    info["stats"] = columns.tolist()
    write_json(shard.info_path, info, indent=None)


def read_shard_info(path: AnyPath) -> ShardInfo:
    """The info that `write_shard` wrote."""
    info = json.loads(path.read_text(encoding="utf-8"))
    stats = RowStats(*np.array(info["stats"], np.int32).reshape(len(COLUMNS), -1))
    return ShardInfo(
        info["size"], info["sha256"], DatasetStatistics(**info["tally"]), stats, info["rules"], [BadRow(*bad) for bad in info["bad"]]
    )


@cache
def _tokenizer(name: str | None) -> ChatTokenizer | None:
    return None if name is None else ChatTokenizer.from_pretrained(name)


def _images(row: RawExample) -> dict[str, LazyImage]:
    return {"target": row.target} if row.source is None else {"source": row.source, "target": row.target}


def plan_shards(rows: SplitSource, count: int, number: int, folder: AnyPath, work_folder: AnyPath) -> Sequence[Shard]:
    """A split of `count` rows as `number` shards of nearly equal length; fewer, if there are fewer rows."""
    number = min(count, number)
    ends = [count * part // number for part in range(number + 1)]
    names = [f"{rows.kind}-{rows.split}.array_record-{part:05}-of-{number:05}" for part in range(number)]
    return [
        Shard(rows, start, stop, folder / name, work_folder / f"{name}.json")
        for start, stop, name in zip(ends[:-1], ends[1:], names, strict=True)
    ]
