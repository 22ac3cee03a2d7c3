"""A first look: the sample pictures beside a checkpoint are edited as its samples.json says, and what has no picture is painted from text.

samples/samples.json   a list of {"image": "name.png", "prompt": "...", "seed": 0}; without "image" it is painted from the text
samples/name.png       pictures that the model was not trained on
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from dim_jax.edit_result import EditResult, check_output, save_picture
from dim_jax.errors import InputError, check
from dim_jax.pipeline import EditPipeline, GeneratePipeline
from dim_jax.processing.pictures import open_picture
from dim_jax.sheets import grid, with_caption
from dim_jax.storage.paths import AnyPath, creation_errors, read_json

COLUMNS = 3  # of the sheet
KEYS = {"image": str, "prompt": str, "seed": int}


@dataclass(frozen=True)
class Sample:
    """What to paint: an edit of `source`, or a picture from the prompt alone."""

    prompt: str
    seed: int
    source: Image.Image | None


def read_samples(folder: Path) -> list[Sample]:
    """The samples in a folder with a samples.json.

    Raises:
        InputError: samples.json or a picture is missing or cannot be used.
    """
    file = folder / "samples.json"
    entries = read_json(file)
    check(isinstance(entries, list) and entries, f"{file}: must be a list of samples, at least one. Restore it.")
    for number, entry in enumerate(entries, 1):
        fits = isinstance(entry, dict) and {"prompt", "seed"} <= entry.keys() <= KEYS.keys()
        if not fits or any(type(value) is not KEYS[key] for key, value in entry.items()):
            raise InputError(f"{file}: sample {number} is {entry!r}, but must have prompt, seed and perhaps the name of an image. Fix it.")
    return [
        Sample(entry["prompt"], entry["seed"], open_picture(folder / entry["image"]) if "image" in entry else None) for entry in entries
    ]  # fmt: skip


def check_outputs(folder: AnyPath, number: int, *, overwrite: bool) -> list[AnyPath]:
    """Where `number` paintings and, last, the sheet go; makes the folder.

    Raises:
        InputError: one of them may not be written.
    """
    with creation_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return [check_output(folder / f"{name}.png", overwrite=overwrite) for name in (*range(1, number + 1), "sheet")]


def paint(pipeline: EditPipeline, samples: Sequence[Sample], *, progress: bool = False) -> list[EditResult]:
    """The samples, painted with the settings of the checkpoint: all edits in one batch, all others in another. In order.

    Raises:
        InputError: as in `EditPipeline` and `GeneratePipeline`.
    """
    edits = {i: sample.source for i, sample in enumerate(samples) if sample.source is not None}
    texts = [i for i in range(len(samples)) if i not in edits]
    settings = replace(pipeline.sampler.settings, batch_size=len(samples))
    results: dict[int, EditResult] = {}
    if edits:
        prompts, seeds = [samples[i].prompt for i in edits], [samples[i].seed for i in edits]
        edited = pipeline(prompts, list(edits.values()), seeds=seeds, settings=settings, progress=progress)
        results |= zip(edits, edited, strict=True)
    if texts:
        prompts, seeds = [samples[i].prompt for i in texts], [samples[i].seed for i in texts]
        generated = GeneratePipeline(pipeline.sampler)(prompts, seeds=seeds, settings=settings, progress=progress)
        results |= zip(texts, generated, strict=True)
    return [results[i] for i in range(len(samples))]


def sheet(paintings: Sequence[EditResult]) -> Image.Image:
    """Source and result of every painting, the prompt below."""
    cells = [
        with_caption([*([painting.source] if painting.source else []), painting.image], painting.prompt, zoom=2) for painting in paintings
    ]
    return grid([cells[i : i + COLUMNS] for i in range(0, len(cells), COLUMNS)])


def run(checkpoint: Path, folder: AnyPath, *, overwrite: bool = False, progress: bool = False) -> AnyPath:
    """Paint the samples of a checkpoint into `folder`: 1.png, 2.png ... and sheet.png, whose path is returned.

    Raises:
        InputError: the checkpoint or its samples cannot be used, or an output may not be written.
    """
    samples = read_samples(checkpoint / "samples")
    *files, last = check_outputs(folder, len(samples), overwrite=overwrite)
    paintings = paint(EditPipeline.from_pretrained(checkpoint), samples, progress=progress)
    for painting, file in zip(paintings, files, strict=True):
        painting.save(file, overwrite=overwrite)
    save_picture(sheet(paintings), last, overwrite=overwrite)
    return last
