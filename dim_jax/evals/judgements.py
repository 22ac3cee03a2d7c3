"""Results of a painter on training pairs, each with the answer whether it is what was asked for: what an encoder learns to judge from.

The answer follows from the target (`is_done`). Of each pair there are four results:

- what the painter makes of its instruction;
- what the painter makes of another pair's instruction for the same source, where there is one: a good picture, but not of this edit;
- target and source, as the autoencoder rebuilds them: else sharpness would tell them from what is painted.
"""

import json
from pathlib import Path
from urllib.parse import quote

import numpy as np
from jaxtyping import Float
from PIL import Image

from dim_jax.data.example import Example, RawExample
from dim_jax.datasets.layouts.pairs import Pairs
from dim_jax.designer.local import DONE, NOT_DONE
from dim_jax.edit_result import save_picture
from dim_jax.errors import check
from dim_jax.evals.benchmark import group_by
from dim_jax.evals.emoji import picture_request, sample, source_of
from dim_jax.evals.metrics import unit_pixels
from dim_jax.evals.pictures import PictureRequest, checkpoint_digest, paint
from dim_jax.pipeline import EditPipeline
from dim_jax.settings import Settings
from dim_jax.storage.folders import make_folder, new_file, write_text
from dim_jax.storage.paths import AnyPath

TABLE = "judgements.jsonl"
CARD = "README.md"  # of the source, whose licences hold for these pictures
PAINTED, SOURCES, REBUILT = "painted", "sources", "rebuilt"  # the folders of pictures


def is_done(source: Float[np.ndarray, "h w 3"], target: Float[np.ndarray, "h w 3"], result: Float[np.ndarray, "h w 3"]) -> bool:
    """Whether a result is nearer to the target than to the source, and unchanged elsewhere.

    Where source and target differ, its mean squared error to the target, plus that where they agree, must be less than its error to the
    source. Both places count by themselves, however small, as in `training.reward.target_rewards`.
    """
    changed = (source != target).any(-1)
    to_source, to_target = (np.mean((result - picture) ** 2, -1) for picture in (source, target))
    elsewhere = 0.0 if changed.all() else to_target[~changed].mean()
    return bool(changed.any() and to_target[changed].mean() + elsewhere < to_source[changed].mean())


def build(
    pipeline: EditPipeline, source: AnyPath, folder: Path, *, pairs_per_rule: int, seed: int, settings: Settings, progress: bool = False
) -> dict[str, int]:
    """Write results and answers for a balanced sample of pairs into `folder`, which `dim prepare` reads.

    Results that are there are kept: a second run goes on where the first one stopped.

    Args:
        pipeline: the painter.
        source: a data set of pairs; those to train on are taken.
        folder: to make, or to go on with.
        pairs_per_rule: of a rule that has fewer, all are taken.
        seed: of the sample and of the noise.
        settings: how to paint.
        progress: show a bar.

    Returns:
        The number of rows by answer.

    Raises:
        InputError: as in `Pairs`, there are none, a picture cannot be written, or as in `EditPipeline`.
    """
    pairs = Pairs(source, "train", "edit")
    check(len(pairs), f"{source}: has no pairs to train on. Give a data set that has some.")
    raw, rng = [pairs.raw(i) for i in range(len(pairs))], np.random.default_rng(seed)
    same_source = group_by(range(len(pairs)), lambda i: _keys(raw[i])[0])
    examples, painted = list[Example](), list[tuple[Example, PictureRequest]]()
    for i in sample([row.rule for row in raw], pairs_per_rule, seed=seed):
        others = [j for j in same_source[_keys(raw[i])[0]] if raw[j].key != raw[i].key]
        edits = [pairs[i], *([pairs[int(rng.choice(others))]] if others else [])]
        painted += [(edits[0], picture_request(edit, edit.texts[0], "none", seed)) for edit in edits]
        examples.append(edits[0])
    requests = {request.name: request for _, request in painted}
    results = paint(pipeline, [*requests.values()], folder / PAINTED, settings, checkpoint_digest(pipeline.sampler), progress=progress)
    results = {f"{PAINTED}/{name}.png": result for name, result in zip(requests, results, strict=True)}
    sources = {_file(SOURCES, _keys(one)[0]): source_of(one) for one in examples}
    known = {_file(REBUILT, key): picture for one in examples for key, picture in zip(_keys(one), _pictures(one), strict=True)}
    rebuilt = dict(zip(known, pipeline.sampler.reconstruct([*known.values()], settings), strict=True))
    for name, picture in (sources | rebuilt).items():
        make_folder((folder / name).parent)
        save_picture(picture, folder / name, overwrite=True)
    judged = [(example, f"{PAINTED}/{request.name}.png") for example, request in painted]
    judged += [(example, _file(REBUILT, key)) for example in examples for key in _keys(example)]
    pictures, answers = results | rebuilt, list[str]()
    if (source / CARD).is_file():
        write_text(folder / CARD, (source / CARD).read_text(encoding="utf-8"))
    with new_file(folder / TABLE) as scratch, scratch.open("w", encoding="utf-8") as table:
        for example, name in judged:
            answers.append(DONE if _is_done(example, pictures[name]) else NOT_DONE)
            row = {"id": f"{example.key} {name}", "source": _file(SOURCES, _keys(example)[0]), "result": name}
            table.write(json.dumps(row | {"prompt": example.texts, "answer": answers[-1]}, ensure_ascii=False) + "\n")
    return {answer: answers.count(answer) for answer in (DONE, NOT_DONE)}


def _keys(example: Example | RawExample) -> tuple[str, str]:
    """Names of the source and of the target."""
    source, _, target = example.key.partition(">")
    return source, target


def _pictures(example: Example) -> tuple[Image.Image, Image.Image]:
    return source_of(example), example.target


def _file(folder: str, key: str) -> str:
    return f"{folder}/{quote(key, safe=' ')}.png"


def _is_done(example: Example, result: Image.Image) -> bool:
    size = (example.target.height, example.target.width)
    return is_done(*(unit_pixels(picture, size) for picture in (*_pictures(example), result)))
