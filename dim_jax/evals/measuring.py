"""The metrics of a track: by case, by category and overall, in TRACK/metrics.json."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dim_jax.datasets.similarity import Clip, VisionModel, cosine
from dim_jax.errors import InputError
from dim_jax.evals.benchmark import Benchmark, Case, group_by, read_finished
from dim_jax.evals.frechet import collect_statistics, frechet_distance, open_features
from dim_jax.evals.lpips import Lpips
from dim_jax.evals.metrics import METRICS, Triple, match_size
from dim_jax.evals.official import RESULTS
from dim_jax.processing.pictures import open_picture
from dim_jax.storage.folders import write_json
from dim_jax.storage.paths import read_object

FILE = "metrics.json"
MODELS = {"clip_i": "clip", "clip_t": "clip", "dino": "dino", "fid": "features", "lpips": "lpips"}  # which model a metric needs
BATCH = 16


@dataclass(frozen=True)
class Models:
    """The networks that metrics need, as folders or files of this machine; None: their metrics are left out, and it is said."""

    clip: Path | None = None
    dino: Path | None = None
    features: Path | None = None
    lpips: Path | None = None


def measure(track: Path, benchmark: Benchmark, cases: Sequence[Case], models: Models) -> dict[str, Any]:
    """Measure the finished cases of a track, unless metrics.json is of the same pictures and models.

    Of an edit in several turns the last picture counts, of several pictures their mean. Where rounds were painted, "oracle" has the means
    over the rounds that came nearest to the targets.

    Raises:
        InputError: a picture cannot be read, or a model cannot be loaded.
    """
    finished = read_finished(track)
    cases = [case for case in cases if case.id in finished]
    key = _fingerprint(track, benchmark, finished, models)
    if (track / FILE).is_file() and (report := read_object(track / FILE)).get("key") == key:
        return report
    chosen = {name for name in benchmark.metrics if name not in MODELS or getattr(models, MODELS[name]) is not None}
    left_out = {name: f"needs a network (--{MODELS[name]})" for name in benchmark.metrics if name not in chosen}
    scores = {case.id: dict[str, float]() for case in cases}
    oracle: dict[str, dict[str, float]] = {}
    measures = {name: METRICS[name] for name in benchmark.metrics if name in METRICS}
    if "lpips" in chosen and models.lpips is not None:
        perceptual = Lpips(models.lpips)
        measures["lpips"] = lambda triple: perceptual.distance(*match_size(triple))
    for case in cases:
        row = finished[case.id]
        scores[case.id] |= _distances(measures, case, [track / name for name in _scored_pictures(row, benchmark)])
        if best := next((attempt["picture"] for attempt in row.get("rounds", ()) if attempt.get("oracle")), None):
            oracle[case.id] = _distances(measures, case, [track / best])
    _similarities(track, cases, finished, models, chosen, scores)
    if benchmark.official_scores and (track / RESULTS).is_file():
        for name, case_scores in benchmark.official_scores(track / RESULTS, cases).items():
            scores[name] |= case_scores
    report: dict[str, Any] = {
        "key": key, "cases": scores, "mean": _overall(scores, cases, benchmark), "left_out": left_out,
        "categories": {category: _mean([scores[case.id] for case in group]) for category, group in _by_category(cases).items()},
    }  # fmt: skip
    if oracle:
        report["oracle"] = {"cases": oracle, "mean": _mean(list(oracle.values()))}
    if "fid" in chosen and models.features is not None:
        report["mean"]["fid"], report["fid"] = _fid(track, cases, finished, benchmark, models.features)
    write_json(track / FILE, report)
    return report


def _distances(measures: Mapping[str, Callable[[Triple], float]], case: Case, pictures: Sequence[Path]) -> dict[str, float]:
    """By metric, the mean over pictures."""
    if case.target is None or not measures:
        return {}
    source, target = None if case.source is None else open_picture(case.source), open_picture(case.target)
    triples = [Triple(open_picture(picture), target, source) for picture in pictures]
    return {name: float(np.mean([measure(triple) for triple in triples])) for name, measure in measures.items()}


def _similarities(
    track: Path,
    cases: Sequence[Case],
    finished: Mapping[str, dict[str, Any]],
    models: Models,
    chosen: set[str],
    scores: dict[str, dict[str, float]],
) -> None:
    """Adds CLIP-I, DINO and CLIP-T of the last pictures, in batches."""
    clip = Clip(models.clip) if models.clip and chosen & {"clip_i", "clip_t"} else None
    dino = VisionModel(models.dino) if models.dino and "dino" in chosen else None
    aimed = [case for case in cases if case.target is not None]
    for start in range(0, len(aimed) if clip or dino else 0, BATCH):
        batch = aimed[start : start + BATCH]
        results = [open_picture(track / finished[case.id]["pictures"][-1]) for case in batch]
        targets = [open_picture(case.target) for case in batch if case.target is not None]
        for name, model in (("clip_i", clip), ("dino", dino)):
            if model is not None and name in chosen:
                for case, value in zip(batch, cosine(model.features(results), model.features(targets)), strict=True):
                    scores[case.id][name] = float(value)
        captioned = [i for i, case in enumerate(batch) if case.metadata.get("caption")]
        if clip is not None and "clip_t" in chosen and captioned:
            texts = clip.texts([batch[i].metadata["caption"] for i in captioned])
            for i, value in zip(captioned, cosine(clip.features([results[i] for i in captioned]), texts), strict=True):
                scores[batch[i].id]["clip_t"] = float(value)


def _fid(
    track: Path, cases: Sequence[Case], finished: Mapping[str, dict[str, Any]], benchmark: Benchmark, path: Path
) -> tuple[float, dict[str, Any]]:
    features, resizing = open_features(path)
    results = collect_statistics(
        (open_picture(track / name) for case in cases for name in _scored_pictures(finished[case.id], benchmark)), features
    )
    targets = collect_statistics((open_picture(case.target) for case in cases if case.target is not None), features)
    about = {"features": str(path), "resizing": resizing, "results": results.count, "references": targets.count}
    return frechet_distance(results, targets), about


def _scored_pictures(row: Mapping[str, Any], benchmark: Benchmark) -> list[str]:
    """The pictures of a case that are scored."""
    return row["pictures"] if benchmark.pictures_per_case > 1 else row["pictures"][-1:]


def _by_category(cases: Sequence[Case]) -> dict[str, list[Case]]:
    return group_by(sorted(cases, key=lambda case: case.category), lambda case: case.category)


def _mean(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Over the cases that have a metric."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}


def _overall(scores: Mapping[str, Mapping[str, float]], cases: Sequence[Case], benchmark: Benchmark) -> dict[str, float]:
    if benchmark.mean_over == "cases":
        return _mean(list(scores.values()))
    return _mean([_mean([scores[case.id] for case in group]) for group in _by_category(cases).values()])


def _fingerprint(track: Path, benchmark: Benchmark, finished: Mapping[str, dict[str, Any]], models: Models) -> str:
    """What the metrics depend on, by names, sizes and times of files."""
    files = [track / name for row in finished.values() for name in _picture_names(row)]
    files += [path for path in (track / RESULTS,) if path.is_file()]
    marks = []
    for file in files:
        try:
            status = file.stat()
        except OSError as error:
            raise InputError(f"{file}: is missing, though its case is finished. Run the stage generate again.") from error
        marks.append([str(file.relative_to(track)), status.st_size, status.st_mtime_ns])
    return hashlib.sha256(json.dumps([benchmark.metrics, str(models), sorted(finished), marks]).encode()).hexdigest()


def _picture_names(row: Mapping[str, Any]) -> Iterator[str]:
    yield from row["pictures"]
    yield from (attempt["picture"] for attempt in row.get("rounds", ()))
