"""One HTML file of a report: every case with its pictures and the judge's words. It needs no network and no other file."""

import base64
import html as markup
import io
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import Any

from PIL import Image

from dim_jax.evals.benchmark import Case
from dim_jax.evals.sheets import ReportTable, describe_runs, to_html, track_name
from dim_jax.processing.pictures import open_picture

SIDES = (384, 256, 192, 160, 128, 112)  # pixels of a thumbnail's longer side, the largest that fits the page's size
PAGE_BYTES = 12_000_000  # of all thumbnails together, about
BYTES_PER_PIXEL = 0.2  # of a photograph as WebP at this quality
QUALITY = 70
SMALL = 96  # pixels; such a picture keeps every one of them, and the page shows them as squares
LESS_IS_BETTER = ("l1", "l2", "lpips")
CHUNK = 256  # thumbnails under way


def html(report: Mapping[str, Any], tables: Sequence[ReportTable], cases: Sequence[Case], runs: Mapping[str, Path]) -> str:
    """The page.

    Args:
        report: as `report.build` gives it.
        tables: of the report.
        cases: for their sources and targets.
        runs: the folders that results are in.

    Raises:
        InputError: a picture cannot be read.
    """
    template = resources.files("dim_jax.evals").joinpath("page.html").read_text(encoding="utf-8")
    parts = {
        "TITLE": markup.escape(report["title"]),
        "ABOUT": markup.escape(describe_runs(report)),
        "TABLES": "".join(map(to_html, tables)),
        # A "<" in the text of a script could end it.
        "DATA": json.dumps(_data(report, cases, runs), ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"),
    }
    for name, text in parts.items():
        template = template.replace(f"<!--{name}-->", text)
    return template


def _data(report: Mapping[str, Any], cases: Sequence[Case], runs: Mapping[str, Path]) -> dict[str, Any]:
    """What the page's script reads; names are short, since there may be thousands of each."""
    variants = [(track["run"], track["track"]) for track in report["tracks"]]
    judges = list(dict.fromkeys(judge for track in report["tracks"] for judge in track["judges"]))
    painted = [(case, row) for case, row in zip(cases, report["cases"], strict=True) if row["results"]]
    files: list[Path] = []
    for case, row in painted:
        files += [path for path in (case.source, case.target) if path is not None]
        files += [runs[result["run"]] / result["track"] / result["picture"] for result in row["results"]]
    thumbnails = dict(zip(files, _thumbnails(files), strict=True))
    rows = []
    for case, row in painted:
        results = {}
        for result in row["results"]:
            picture = runs[result["run"]] / result["track"] / result["picture"]
            results[variants.index((result["run"], result["track"]))] = {
                "i": thumbnails[picture],
                "p": "" if result["painted_prompt"] == row["prompt"] else result["painted_prompt"],
                "j": {judges.index(judge): _answers(judged) for judge, judged in result["judges"].items()},
                "m": {name: round(value, 4) for name, value in result["measures"].items()},
            }
        pictures = {"s": case.source and thumbnails[case.source], "t": case.target and thumbnails[case.target]}
        prompt = "\n".join(row["turns"]) or row["prompt"]
        rows.append({"id": row["id"], "c": row["category"], "p": prompt, **pictures, "r": results})
    return {
        "variants": [track_name(report, *variant) for variant in variants],
        "judges": judges,
        "scores": [*_by_judges(report, judges), *_by_measures(report, rows)],
        "cases": rows,
    }


def _by_judges(report: Mapping[str, Any], judges: Sequence[str]) -> list[dict[str, Any]]:
    """A number that cases may be filtered and ordered by: the main one of each judge; with its worst and best, and the tracks' means."""
    scores = []
    for i, judge in enumerate(judges):
        main = report["protocol"]["main"]
        rows = [track["judges"].get(judge, {"metrics": {}, "failed": 0, "judged": 0}) for track in report["tracks"]]
        means = [{name: round(row["metrics"][main][name], 3) for name in ("mean", "low", "high")} if row["metrics"] else {} for row in rows]
        heads = [mean | {"failed": row["failed"], "judged": row["judged"]} for mean, row in zip(means, rows, strict=True)]
        scores.append({"name": judge, "judge": i, "key": main, "scale": report["protocol"]["scales"][main], "heads": heads})
    return scores


def _by_measures(report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The same of each metric that was measured by case."""
    values: dict[str, list[float]] = {}
    for row in rows:
        for result in row["r"].values():
            for name, value in result["m"].items():
                values.setdefault(name, []).append(value)
    scores = []
    for name, column in values.items():
        means = [track["measures"].get("mean", {}).get(name) for track in report["tracks"]]
        heads = [{} if mean is None else {"mean": round(mean, 4)} for mean in means]
        scale = sorted((min(column), max(column)), reverse=name in LESS_IS_BETTER)
        scores.append({"name": name, "judge": None, "key": name, "scale": scale, "heads": heads})
    return scores


def _answers(judged: Mapping[str, Any]) -> dict[str, Any]:
    metrics = judged["metrics"]
    return {
        "m": None if metrics is None else {name: round(value, 3) for name, value in metrics.items()},
        "f": judged["failed"],
        "a": [[name, answer["text"], answer["reason"], answer["attempts"]] for name, answer in judged["answers"].items()],
    }


def _thumbnails(files: Sequence[Path]) -> list[str]:
    """Small pictures as data URIs, of a size that keeps the page readable by browsers however many there are."""
    side = thumbnail_side(len(files))
    thumbnails: dict[Path, str] = {}
    order = list(dict.fromkeys(files))
    with ThreadPoolExecutor() as workers:
        for start in range(0, len(order), CHUNK):
            part = order[start : start + CHUNK]
            thumbnails |= dict(zip(part, workers.map(lambda file: thumbnail(file, side), part), strict=True))
    return [thumbnails[file] for file in files]


def thumbnail_side(count: int) -> int:
    """Pixels of each of so many thumbnails."""
    return next((side for side in SIDES if side**2 * BYTES_PER_PIXEL * count <= PAGE_BYTES), SIDES[-1])


def thumbnail(file: Path, side: int) -> str:
    """A picture as a WebP of at most `side` pixels each way, as a data URI; smaller ones keep their size and every pixel."""
    picture = open_picture(file)
    small = max(picture.size) <= SMALL
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    picture.save(data, "WEBP", lossless=small, quality=QUALITY, method=3)
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"
