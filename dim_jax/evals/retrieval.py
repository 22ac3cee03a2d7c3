"""How well a painter paints emoji from captions that it has not seen: is a result nearest to its own picture, among 100 of the same set?

Pictures are compared by the correlation of their pixels, which blur and contrast change little. Beside the painter stands the autoencoder's
reconstruction of the pictures, which is found nearly always.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from jaxtyping import Float, Int
from PIL import Image
from rich.table import Table

from dim_jax.data.example import Example
from dim_jax.errors import check
from dim_jax.evals.benchmark import group_by, shuffled_groups
from dim_jax.evals.emoji import check_outputs, write_outputs
from dim_jax.evals.metrics import unit_pixels
from dim_jax.evals.pictures import PictureRequest, checkpoint_digest, paint
from dim_jax.pipeline import EditPipeline
from dim_jax.settings import Settings
from dim_jax.sheets import grid, with_caption

PICTURES = 100  # of a set
TOP = 5
SHEET_PICTURES = 8  # of each set on the contact sheet


@dataclass(frozen=True)
class Rank:
    """Of a caption: where its picture comes among those of its set, by their likeness to what was painted. 1 is the best.

    Attributes:
        set, key, caption, seed: which picture of which set, what it was painted from, and the seed of the noise.
        rank: of the painted picture.
        rank_autoencoder: of the picture's reconstruction.
    """

    set: str
    key: str
    caption: str
    seed: int
    rank: int
    rank_autoencoder: int


def sample(keys: Sequence[str], *, seed: int = 0) -> list[int]:
    """Indices of `PICTURES` random pictures of each set (of all, where it has fewer), set by set. A key is "SET/NAME"."""
    return [i for _, group in sorted(shuffled_groups([*map(_set, keys)], seed).items()) for i in group[:PICTURES]]


def ranks(results: Sequence[Image.Image], targets: Sequence[Image.Image]) -> Int[np.ndarray, " n"]:
    """For each result the rank of its own target, from 1, among all targets by the correlation of their pixels.

    Targets that are alike share the worst of their ranks; a result of one colour, which resembles none, gives the last rank.
    """
    size = (targets[0].height, targets[0].width)
    similarity = _standardized(results, size) @ _standardized(targets, size).T
    return (similarity >= np.diag(similarity)[:, None] - 1e-9).sum(1)


def evaluate(
    pipeline: EditPipeline,
    captions: Sequence[Example],
    output: Path,
    *,
    data: str,
    seed: int = 0,
    settings: Settings | None = None,
    batch_size: int = 16,
    overwrite: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Paint a sample of captions, by their first wording, and find the pictures; by set, overall, and caption by caption.

    Results are kept, and go on, as in `emoji.evaluate`; the contact sheet has result and picture.

    Args:
        captions: pictures of a split that the painter was not trained on.
        data, seed, settings, batch_size, overwrite, progress: as there.

    Raises:
        InputError: there is nothing to measure, an output cannot be written, or as in `EditPipeline`.
    """
    check_outputs(output, overwrite=overwrite)
    check(len(captions) and batch_size > 0, f"{data}: {len(captions)} pictures in batches of {batch_size}: each must be at least 1.")
    painter = pipeline.sampler
    settings, weights = replace(settings or painter.settings, batch_size=batch_size), checkpoint_digest(painter)
    chosen = [captions[i] for i in sample([example.key for example in captions], seed=seed)]
    requests = [_request(example, seed) for example in chosen]
    images = paint(pipeline, requests, output.with_suffix(".pictures"), settings, weights, progress=progress)
    rebuilt = painter.reconstruct([example.target for example in chosen], settings)
    rows = []
    for name, group in group_by(range(len(chosen)), lambda i: _set(chosen[i].key)).items():
        targets = [chosen[i].target for i in group]
        painted, again = (ranks([pictures[i] for i in group], targets).tolist() for pictures in (images, rebuilt))
        rows += [
            Rank(name, chosen[i].key, requests[i].prompt, requests[i].seed, rank, rank_again)
            for i, rank, rank_again in zip(group, painted, again, strict=True)
        ]
    report = {
        "data": data, "checkpoint": painter.name, "weights": weights, "dtype": painter.dtype, "seed": seed,
        "settings": {key: value for key, value in asdict(settings).items() if value is not None},
        "overall": summary(rows),
        "sets": {name: summary(group) for name, group in group_by(rows, lambda row: row.set).items()},
        "captions": [asdict(row) for row in rows],
    }  # fmt: skip
    write_outputs(output, report, _sheet(chosen, images))
    return report


def summary(rows: Sequence[Rank]) -> dict[str, int | float]:
    """Number of captions; the share whose picture comes first, or among the first `TOP`; the median rank; the autoencoder's share."""
    found, rebuilt = np.array([row.rank for row in rows]), np.array([row.rank_autoencoder for row in rows])
    first, top = float(np.mean(found == 1)), float(np.mean(found <= TOP))
    return {
        "captions": len(rows), "first": first, f"first_{TOP}": top, "median": float(np.median(found)),
        "autoencoder": float(np.mean(rebuilt == 1)),
    }  # fmt: skip


def table(report: Mapping[str, Any]) -> Table:
    """The report by set, for people."""
    table = Table(caption="How often a caption's own picture is the nearest of its set to what was painted, or among the five nearest.")
    for column in ("set", "captions", "nearest", f"nearest {TOP}", "median rank", "autoencoder"):
        table.add_column(column, justify="left" if column == "set" else "right")
    for name, row in (*report["sets"].items(), ("all", report["overall"])):
        if name == "all":
            table.add_section()
        shares = (f"{row[key]:.0%}" for key in ("first", f"first_{TOP}"))
        table.add_row(name, str(row["captions"]), *shares, f"{row['median']:.0f}", f"{row['autoencoder']:.0%}")
    return table


def _set(key: str) -> str:
    return key.partition("/")[0]


def _request(example: Example, seed: int) -> PictureRequest:
    check(example.source is None, f"{example.key}: has a source to edit. Give captions (kind 'caption').")
    return PictureRequest(quote(example.key, safe=" /"), example.texts[0], None, zlib.crc32(f"{seed} {example.key}".encode()) >> 1)


def _standardized(pictures: Sequence[Image.Image], size: tuple[int, int]) -> Float[np.ndarray, "n d"]:
    """The pixels of each picture less their mean, of unit length; zeros for a picture of one colour."""
    pixels = np.stack([unit_pixels(picture, size).reshape(-1) for picture in pictures])
    pixels -= pixels.mean(1, keepdims=True)
    return pixels / np.maximum(np.linalg.norm(pixels, axis=1, keepdims=True), 1e-6)


def _sheet(examples: Sequence[Example], results: Sequence[Image.Image]) -> Image.Image:
    """A line for each set, a few captions on it: result, picture, the caption below."""
    lines: dict[str, list[Image.Image]] = {}
    for example, result in zip(examples, results, strict=True):
        line = lines.setdefault(_set(example.key), [])
        if len(line) < SHEET_PICTURES:
            line.append(with_caption([result, example.target], example.texts[0], zoom=2))
    return grid(list(lines.values()))
