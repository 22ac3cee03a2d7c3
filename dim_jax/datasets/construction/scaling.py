"""The score stage as an Apache Beam pipeline: ranges of pairs on the workers of the runner, each written when it is finished.

Call it from a program with a main guard, as the command `dim` is: Beam's workers import the main module anew, and a pipeline that is
started while its module is being imported waits for itself for ever.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import apache_beam as beam  # pyright: ignore[reportMissingImports]
from apache_beam.options.pipeline_options import PipelineOptions  # pyright: ignore[reportMissingImports]

from dim_jax.datasets.construction.filtering import score_batch, scores_version
from dim_jax.datasets.construction.scores import Similarity
from dim_jax.datasets.construction.sources import Source, open_source
from dim_jax.designer.journal import JsonlLog
from dim_jax.storage.folders import new_file

BATCHES = 16  # of one stretch: what is lost when a worker dies


class PairRange(NamedTuple):
    """Pairs of a source, by its spec and their numbers."""

    source: str
    numbers: tuple[int, ...]


class Score(beam.DoFn):
    """Scores ranges and writes each to a file of its own in `folder`, which all workers must see."""

    def __init__(self, settings: dict[str, Any], folder: str):
        self._settings, self._folder = settings, folder

    def setup(self) -> None:
        self._similarity = Similarity(self._settings["dino"], self._settings["clip"])

    def process(self, element: PairRange) -> Iterator[int]:
        source, size = _source(element.source), self._settings["batch_size"]
        starts = range(0, len(element.numbers), size)
        batches = (score_batch(source, element.numbers[i : i + size], self._similarity, self._settings["ssim_side"]) for i in starts)
        rows = [row for batch in batches for row in batch]
        name = f"{source.name.replace(':', '-').replace('/', '-')}-{element.numbers[0]:010d}.jsonl"
        with new_file(Path(self._folder) / name) as scratch:
            scratch.write_text("".join(json.dumps({**row, "version": scores_version(self._settings)}) + "\n" for row in rows))
        yield len(rows)


def score_on_workers(sources: Sequence[Source], settings: Mapping[str, Any], path: Path, options: Sequence[str]) -> None:
    """Score the pairs that `path` lacks, and append them to it: `filtering.score` then has nothing to compute.

    Ranges are in a folder beside `path` until all are finished, so a killed pipeline resumes.

    Args:
        sources: where the pairs come from; workers open them by their spec.
        settings: the table [scores] of the config.
        path: as in `filtering.score`.
        options: of the pipeline, such as ["--runner=DirectRunner"].

    Raises:
        InputError: another run is writing to `path`.
    """
    shards = path.with_name(f"{path.stem}.parts")
    shards.mkdir(exist_ok=True)
    lines = JsonlLog.locked(path, wait=False)
    try:
        scored_keys = {(row["source"], row["index"]) for _, row in lines.read() if row["version"] == scores_version(settings)}
        scored_keys |= _collect(shards, lines, scored_keys)
        ranges = [pair_range for source in sources for pair_range in _missing(source, scored_keys, settings["batch_size"] * BATCHES)]
        if ranges:
            with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
                scored_rows = pipeline | beam.Create(ranges) | beam.Reshuffle()
                scored_rows | beam.ParDo(Score(dict(settings), str(shards.resolve())))  # pyright: ignore[reportUnusedExpression]
            _collect(shards, lines, scored_keys)
        shards.rmdir()
    finally:
        lines.close()


@cache
def _source(spec: str) -> Source:
    """Opened once a worker."""
    return open_source(spec)


def _missing(source: Source, scored_keys: set[tuple[str, int]], size: int) -> Iterator[PairRange]:
    missing = [index for index in range(len(source.rows)) if (source.name, index) not in scored_keys]
    for start in range(0, len(missing), size):
        yield PairRange(source.spec, tuple(missing[start : start + size]))


def _collect(shards: Path, lines: JsonlLog, scored_keys: set[tuple[str, int]]) -> set[tuple[str, int]]:
    """Move what workers wrote to `lines`; returns which pairs these are. A part that was moved before its file went is not moved again."""
    collected = set[tuple[str, int]]()
    for shard in sorted(shards.glob("[!.]*.jsonl")):
        rows = [json.loads(line) for line in shard.read_text().splitlines()]
        new = [row for row in rows if (row["source"], row["index"]) not in scored_keys | collected]
        if new:
            lines.append(*new)
        collected |= {(row["source"], row["index"]) for row in new}
        shard.unlink()
    return collected
