"""The edits of a measurement, kept on disk as they are painted, so that an interrupted run goes on where it stopped."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from dim_jax.data.pictures import open_picture
from dim_jax.edit_result import read_metadata
from dim_jax.errors import InputError
from dim_jax.models.module import parameters
from dim_jax.pipeline import EditPipeline
from dim_jax.sampling import Sampler
from dim_jax.settings import Settings


@dataclass(frozen=True)
class Edit:
    """A picture to paint; `name` is that of its file, without the suffix and with "/" for folders."""

    name: str
    prompt: str
    source: Image.Image
    seed: int


def digest(painter: Sampler) -> str:
    """SHA-256 of names and bytes of all parameters, whatever the format and the place that they were read from."""
    sha = hashlib.sha256()
    for path, tensor in sorted(parameters(painter.dim).items()):
        sha.update(path.encode() + np.asarray(tensor).tobytes())
    return f"sha256:{sha.hexdigest()}"


def paint(
    pipeline: EditPipeline, edits: Sequence[Edit], folder: Path, settings: Settings, weights: str, *, progress: bool = False
) -> list[Image.Image]:
    """The pictures of all edits, in order.

    Each is written to `folder`/name.png when its batch is done. One that is there already is read instead, if it says of itself that
    it was painted from the same prompt, seed and settings with the same `weights` (a `digest`); any other is painted anew.

    Raises:
        InputError: as in `EditPipeline`, or a picture cannot be written.
    """
    files = [folder / f"{edit.name}.png" for edit in edits]
    found = [_kept(file, edit, settings, weights, pipeline.sampler.dtype) for file, edit in zip(files, edits, strict=True)]
    missing = [i for i, picture in enumerate(found) if picture is None]
    if missing:
        prompts, sources, seeds = zip(*((edits[i].prompt, edits[i].source, edits[i].seed) for i in missing), strict=True)
        for number, painting in pipeline.stream(prompts, sources, seeds=seeds, settings=settings, progress=progress):
            i = missing[number]
            files[i].parent.mkdir(parents=True, exist_ok=True)
            replace(painting, checkpoint=weights).save(files[i], overwrite=True)
            found[i] = painting.image
    return [picture for picture in found if picture is not None]


def _kept(file: Path, edit: Edit, settings: Settings, weights: str, dtype: str) -> Image.Image | None:
    """The picture in a file, if it is what would be painted."""
    wanted = {"prompt": edit.prompt, "seed": edit.seed, "checkpoint": weights, "dtype": dtype}
    used = {key: value for key, value in asdict(settings).items() if key not in ("batch_size", "size")}
    try:
        metadata, picture = read_metadata(file), open_picture(file)
    except InputError:  # nothing there, or damaged
        return None
    same = all(metadata[key] == value for key, value in wanted.items()) and used.items() <= metadata["settings"].items()
    return picture if same else None
