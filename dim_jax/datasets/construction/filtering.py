"""The joint filter of edit pairs: each is scored once, and kept if every score is within bounds, which may be changed afterwards."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from dim_jax.datasets.construction.scores import Pair, Scores, Similarity, ssim
from dim_jax.datasets.construction.sources import RawExample, Source
from dim_jax.designer.journal import JsonlLog
from dim_jax.errors import InputError, check

THREADS = 4
Bounds = Mapping[str, Any]  # as a user wrote them: by kind of source and score, [lowest, highest]


class ScoredPair(NamedTuple):
    """A pair with its scores, or with the reason why it has none."""

    source: str
    index: int
    key: str
    scores: Scores | None
    reason: str


def score(
    sources: Sequence[Source], settings: Mapping[str, Any], path: Path, *, show: Callable[[int], None] = lambda count: None
) -> Iterator[ScoredPair]:
    """The scores of every pair, in order; scores of these models that are already in `path`, a jsonl, are not computed again.

    Args:
        sources: where the pairs come from.
        settings: the table [scores] of the config.
        path: one line for each pair, written batch by batch.
        show: called after each batch with the number of finished pairs.

    Raises:
        InputError: another run is writing to `path`, or a model cannot be read.
    """
    version = scores_version(settings)
    lines = JsonlLog.locked(path, wait=False)
    try:
        scored = {(row["source"], row["index"]): _read_scored_pair(row) for _, row in lines.read() if row["version"] == version}
        count, similarity = 0, None
        for source in sources:
            for start in range(0, len(source.rows), settings["batch_size"]):
                numbers = range(len(source.rows))[start : start + settings["batch_size"]]
                missing = [index for index in numbers if (source.name, index) not in scored]
                if missing:
                    similarity = similarity or Similarity(settings["dino"], settings["clip"])
                    rows = score_batch(source, missing, similarity, settings["ssim_side"])
                    lines.append(*({**row, "version": version} for row in rows))
                    scored |= {(source.name, row["index"]): _read_scored_pair(row) for row in rows}
                yield from (scored.pop((source.name, index)) for index in numbers)
                show(count := count + len(numbers))
    finally:
        lines.close()


def scores_version(settings: Mapping[str, Any]) -> str:
    """A hash of what scores depend on beside the pictures; scores of other versions are ignored."""
    parts = [settings[name] for name in ("dino", "clip", "ssim_side")]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def score_batch(source: Source, numbers: Sequence[int], similarity: Similarity, side: int) -> list[dict[str, Any]]:
    """The scores of some pairs of a source, as they are kept; with `reason` instead for pairs that cannot be read."""
    with ThreadPoolExecutor(THREADS) as pool:
        examples = list(pool.map(lambda index: _read(source, index, side), numbers))
    pairs = [pair for _, pair, _, _ in examples if pair]
    similarities = iter(similarity(pairs) if pairs else [])
    rows = []
    for index, (key, pair, ssim_value, reason) in zip(numbers, examples, strict=True):
        row: dict[str, Any] = {"source": source.name, "index": index, "key": key}
        if pair:
            dino, clip = next(similarities)
            row |= {"ssim": round(ssim_value, 5), "dino": round(dino, 5), "clip": round(clip, 5)}
        else:
            row |= {"reason": reason}
        rows.append(row)
    return rows


def out_of_bounds(kind: str, scores: Scores, bounds: Bounds) -> str:
    """Why a pair of a source of this kind is dropped, or nothing."""
    reasons = []
    for name, (low, high) in bounds.get(kind, {}).items():
        value = getattr(scores, name)
        if not low <= value <= high:
            reasons.append(f"{name} {value:.3f} is {'under' if value < low else 'over'} {low if value < low else high:g}")
    return ", ".join(reasons)


def check_bounds(bounds: Bounds) -> None:
    """Refuse invalid bounds. Raises InputError: an unknown score, or not two numbers in order."""
    for kind, table in bounds.items():
        for name, value in table.items():
            check(name in Scores._fields, f"filter.{kind}.{name}: there is no such score. There are {', '.join(Scores._fields)}.")
            is_pair = isinstance(value, list) and len(value) == 2 and all(isinstance(number, int | float) for number in value)
            check(is_pair and value[0] <= value[1], f"filter.{kind}.{name} is {value!r}; give [lowest, highest], such as [0.5, 1.0].")


def _read(source: Source, index: int, side: int) -> tuple[str, Pair | None, float, str]:
    """Key, pictures and SSIM of a pair; or why it has none."""
    entry: RawExample | None = None
    try:
        entry = source.rows.raw(index)
        if entry.source is None:
            raise InputError("the row has no source picture")
        pair = entry.source.picture(), entry.target.picture()
        return entry.key, pair, ssim(pair, side), ""
    except InputError as error:
        return entry.key if entry else str(index), None, 0.0, str(error)


def _read_scored_pair(row: Mapping[str, Any]) -> ScoredPair:
    scores = None if "reason" in row else Scores(*(row[name] for name in Scores._fields))
    return ScoredPair(row["source"], row["index"], row["key"], scores, row.get("reason", ""))
