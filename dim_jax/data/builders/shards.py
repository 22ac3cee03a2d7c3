"""Files of records, each from a stretch of a source's rows: what every worker of a builder does, whoever started it.

A row becomes a `tf.train.Example` as TFDS reads it, its pictures the bytes of their files as they are: nothing is encoded anew. Every
picture is decoded once all the same, since what is wrong should show now, and not in a training run. The same source gives the same bytes.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow_datasets as tfds
from rich.console import Console
from rich.progress import track

from dim_jax.data.builders.statistics import Tally
from dim_jax.data.pairs import Pairs, PairSplit
from dim_jax.data.pictures import read_picture
from dim_jax.data.raw_example import LazyImage, RawExample
from dim_jax.data.records import new_records
from dim_jax.data.sources import Kind, open_source
from dim_jax.data.sources.entry import ExampleDataset
from dim_jax.data.workers import process_pool
from dim_jax.errors import InputError
from dim_jax.folders import new_file

SAMPLE = 32  # rows whose pictures are read to estimate the size of all
NOTE = ".shard.json"  # after a shard's name: what a worker elsewhere says of it


class Rows(NamedTuple):
    """How a worker finds the rows of a split: as `open_source` has it, and which optional features they have."""

    source: str
    kind: Kind
    split: PairSplit
    index: str
    blueprint: bool
    ruled: bool


class Shard(NamedTuple):
    """Rows from `start` to `stop` (exclusive), and the file to make of them."""

    rows: Rows
    start: int
    stop: int
    path: str


class Written(NamedTuple):
    """What is known of a shard that was written: its rows, the bytes of its records, the SHA-256 of the file, what was counted."""

    rows: int
    size: int
    sha256: str
    tally: Tally


def features_of(kind: Kind, *, blueprint: bool, ruled: bool) -> Any:
    """The features of a kind of rows, all of their pictures as RGB."""
    found = {
        "key": tfds.features.Text(doc="names the row"),
        "texts": tfds.features.Sequence(tfds.features.Text(), doc="wordings of the instruction, or captions; each says it all"),
        "target": tfds.features.Image(doc="the picture to paint"),
    }
    if kind == "edit":
        found["source"] = tfds.features.Image(doc="the picture to edit")
    if blueprint:
        found["blueprint"] = tfds.features.Text(doc="the edit as a designer writes it")
    if ruled:
        found["rule"] = tfds.features.Text(doc="how the target follows from the source")
    return tfds.features.FeaturesDict(found)


@cache
def open_rows(rows: Rows) -> ExampleDataset | Pairs:
    """The rows of a split, opened once in each process.

    Raises:
        InputError: as `open_source`.
    """
    if rows.split == "known":
        return Pairs(rows.source, rows.split, rows.kind)
    found = open_source(rows.source, rows.kind, split=rows.split, side=0, index=rows.index)
    assert isinstance(found, ExampleDataset | Pairs)
    return found


def estimate(rows: Rows) -> int:
    """About how many bytes a split takes, from the pictures of some of its rows."""
    found = open_rows(rows)
    sample = range(0, len(found), -(-len(found) // SAMPLE))
    sizes = [sum(len(picture.read()) for picture in _pictures(found.entry(number)).values()) for number in sample]
    return sum(sizes) * len(found) // len(sizes)


def write_shard(shard: Shard) -> Written:
    """Write one file, whole or not at all.

    Raises:
        InputError: a row cannot be used; names its file and line. Or the file cannot be written.
    """
    found, said = open_rows(shard.rows), shard.rows
    features = features_of(said.kind, blueprint=said.blueprint, ruled=said.ruled)
    serializer, tally = tfds.core.ExampleSerializer(features.get_serialized_info()), Tally()
    path = Path(shard.path)
    with new_file(path) as scratch:
        with new_records(scratch) as file:
            for number in range(shard.start, shard.stop):
                row = found.entry(number)
                data = {name: picture.read() for name, picture in _pictures(row).items()}
                sizes = {name: read_picture(io.BytesIO(data[name]), picture.name).size for name, picture in _pictures(row).items()}
                example: dict[str, Any] = {"key": row.key, "texts": list(row.texts)}
                example |= {name: io.BytesIO(picture) for name, picture in data.items()}  # arrays would need TensorFlow
                example |= {"blueprint": row.blueprint} if said.blueprint else {}
                example |= {"rule": row.rule} if said.ruled else {}
                # A map of protobuf has no order of its own, and the checksum would be another every time.
                record = serializer.get_tf_example(features.encode_example(example)).SerializeToString(deterministic=True)
                file.write(record)
                tally += Tally.of(row, sizes, len(record))
        with scratch.open("rb") as whole:
            digest = hashlib.file_digest(whole, "sha256").hexdigest()
    return Written(shard.stop - shard.start, tally.sums["bytes"], digest, tally)


def write_here(shards: Sequence[Shard], workers: int, console: Console | None = None) -> list[Written]:
    """Write shards in this process (`workers` 0) or several; raises as `write_shard`, at the first."""
    shown = console is not None and console.is_terminal
    options: dict[str, Any] = {"total": len(shards), "console": console, "disable": not shown, "transient": True}
    if not workers:
        return list(track(map(write_shard, shards), "writing shards", **options))
    with process_pool(workers) as pool:
        return list(track(pool.map(write_shard, shards), "writing shards", **options))


def write_on_beam(shards: Sequence[Shard], runner: Any, options: Any) -> list[Written]:
    """Write shards as a pipeline of Apache Beam; its workers must see the source and the data set under the same paths as this process.

    Args:
        runner, options: of `beam.Pipeline`.

    Raises:
        InputError: a row cannot be used. The pipeline goes on to its end, and how many shards have such rows is said.
    """
    import apache_beam as beam  # pyright: ignore[reportMissingImports]

    with beam.Pipeline(runner=runner, options=options) as pipeline:
        pipeline | beam.Create([tuple(shard) for shard in shards]) | beam.Reshuffle() | beam.Map(_write_noted)  # pyright: ignore[reportUnusedExpression]
    written, bad = [], []
    for shard in shards:
        path = Path(f"{shard.path}{NOTE}")
        note = json.loads(path.read_text(encoding="utf-8"))
        path.unlink()
        if "error" in note:
            bad.append(note["error"])
        else:
            written.append(Written(note["rows"], note["size"], note["sha256"], Tally(**note["tally"])))
    if bad:
        raise InputError(bad[0] if len(bad) == 1 else f"Rows of {len(bad)} shards cannot be used. The first: {bad[0]}")
    return written


def _write_noted(shard: tuple[Any, ...]) -> None:
    """Write a shard, and beside it what is known of it: a pipeline returns nothing, and may write a shard twice."""
    rows, start, stop, path = shard
    try:
        found = write_shard(Shard(Rows(*rows), start, stop, path))
        note = {**found._asdict(), "tally": vars(found.tally)}
    except InputError as error:
        note = {"error": str(error)}
    with new_file(Path(f"{path}{NOTE}")) as scratch:
        scratch.write_text(json.dumps(note, ensure_ascii=False), encoding="utf-8")


def _pictures(row: RawExample) -> dict[str, LazyImage]:
    return {"target": row.target} if row.source is None else {"source": row.source, "target": row.target}
