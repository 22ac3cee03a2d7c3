"""The pictures of a measurement, kept on disk as they are painted, so that an interrupted run goes on where it stopped."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from dim_jax import __version__
from dim_jax.batching import Source
from dim_jax.edit_result import EditResult, read_metadata
from dim_jax.errors import InputError
from dim_jax.models.module import parameters
from dim_jax.pipeline import EditPipeline, GeneratePipeline
from dim_jax.processing.pictures import open_picture
from dim_jax.sampling import Sampler
from dim_jax.settings import Settings
from dim_jax.storage.disk import is_creatable
from dim_jax.storage.folders import append, make_folder, new_file, write_errors
from dim_jax.storage.jsonl import read_objects
from dim_jax.storage.local_cache import cache_folder
from dim_jax.storage.paths import is_remote
from dim_jax.weights.hub_files import locate_checkpoint
from dim_jax.weights.lora_files import is_lora, parse_spec

LATENTS = ".npy"
DIGESTS = "digests.jsonl"  # in the cache
END = b"\0\0\0\0IEND\xaeB`\x82"  # the last bytes of every PNG


@dataclass(frozen=True)
class PictureRequest:
    """A picture to paint.

    Attributes:
        name: of its file, without the suffix and with "/" for folders.
        prompt: what the painter reads.
        source: what is edited; None paints from the prompt alone.
        seed: of the noise.
        designer, instruction: who wrote the prompt, from what; as in `EditResult`.
        same_as: a file that may hold this very picture already.
        keep_latents: in a file beside the picture, for what is edited further.
    """

    name: str
    prompt: str
    source: Image.Image | Source | None
    seed: int
    designer: str = "none"
    instruction: str = ""
    same_as: Path | None = None
    keep_latents: bool = False


def digest(painter: Sampler) -> str:
    """SHA-256 of names and bytes of all parameters, whatever the format and the place that they were read from."""
    sha = hashlib.sha256()
    for path, tensor in sorted(parameters(painter.dim).items()):
        sha.update(path.encode())
        sha.update(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
    return f"sha256:{sha.hexdigest()}"


def checkpoint_digest(painter: Sampler) -> str:
    """`digest` of a painter as it was loaded. It is remembered for the files that it came from, since hashing 21 GB takes a minute or more.

    Files are the same as long as their names, sizes, inodes and times of change are. Those of a bucket are hashed anew.
    """
    marks = [_file_marks(source) for source in painter.sources]
    cache_file = cache_folder() / DIGESTS
    if not all(marks) or not is_creatable(cache_file.parent):
        return digest(painter)
    key = hashlib.sha256(json.dumps([__version__, painter.dtype, painter.sources[1:], marks]).encode()).hexdigest()
    try:
        digests = {row["files"]: row["digest"] for _, row in read_objects(cache_file, skip_torn=True)} if cache_file.exists() else {}
    except (InputError, KeyError):  # of another program, or damaged
        return digest(painter)
    if key not in digests:
        digests[key] = digest(painter)
        cache_file.parent.mkdir(parents=True, exist_ok=True)
        append(cache_file, json.dumps({"files": key, "digest": digests[key]}) + "\n")
    return digests[key]


def _file_marks(source: str) -> list[tuple[str, int, int, int, int]]:
    """What tells whether the files of a checkpoint's folder or a LoRA are the same; empty where that is not known."""
    if is_remote(source):
        return []
    path = locate_checkpoint(source if os.path.exists(source) else parse_spec(source)[0]).path
    folder = path.parent if path.is_file() and is_lora(path) else path
    files = sorted(Path(folder_name, name) for folder_name, _, names in os.walk(folder, followlinks=True) for name in names)
    statuses = [(file, file.stat()) for file in files if file.is_file()]
    return [(str(file.resolve()), status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns) for file, status in statuses]


@dataclass(frozen=True)
class PictureStore:
    """A folder of pictures by one painter; `weights` is its `digest`.

    A picture counts as this painter's if it says of itself that it was painted from the same prompt, seed and settings, with the same
    weights.
    """

    folder: Path
    painter: Sampler
    settings: Settings
    weights: str

    def file(self, edit: PictureRequest) -> Path:
        return self.folder / f"{edit.name}.png"

    def source(self, edit: PictureRequest) -> Source:
        """The picture of an edit that was painted with `keep_latents`, to edit it further."""
        file = self.file(edit)
        return Source(open_picture(file), np.load(file.with_suffix(LATENTS)))

    def contains(self, edit: PictureRequest, file: Path | None = None) -> bool:
        """Whether the picture of an edit lies here, whole; or is `file`."""
        file = file or self.file(edit)
        if edit.keep_latents and not file.with_suffix(LATENTS).is_file():
            return False
        expected = {"prompt": edit.prompt, "seed": edit.seed, "checkpoint": self.weights, "dtype": self.painter.dtype}
        used = {key: value for key, value in self.settings.of_picture().items() if key != "size"}
        if not is_complete(file):
            return False
        try:
            metadata = read_metadata(file)
        except InputError:  # damaged, or of somebody else
            return False
        size = self.settings.size is None or self.settings.size == metadata["settings"]["size"]
        is_same = all(metadata[key] == value for key, value in expected.items()) and used.items() <= metadata["settings"].items()
        return size and is_same

    def paint(self, edits: Sequence[PictureRequest], *, progress: bool = False) -> Iterator[tuple[int, EditResult | None]]:
        """Paint what is not here: the number of each edit once its file lies here, and the result; None: it was there. Those come first.

        Raises:
            InputError: as in `EditPipeline`, or a picture cannot be written.
        """
        missing = []
        for i, edit in enumerate(edits):
            if not self.contains(edit) and edit.same_as is not None and self.contains(edit, edit.same_as):
                for suffix in (LATENTS, ".png") if edit.keep_latents else (".png",):
                    link(edit.same_as.with_suffix(suffix), self.file(edit).with_suffix(suffix))
            if self.contains(edit):
                yield i, None
            else:
                missing.append(i)
        for from_text in (False, True):
            numbers = [i for i in missing if (edits[i].source is None) == from_text]
            if not numbers:
                continue
            prompts, seeds = ([getattr(edits[i], name) for i in numbers] for name in ("prompt", "seed"))
            options = {"seeds": seeds, "settings": self.settings, "progress": progress}
            if from_text:
                painted = GeneratePipeline(self.painter).stream(prompts, **options)
            else:
                sources = [source for i in numbers if (source := edits[i].source) is not None]
                painted = EditPipeline(self.painter).stream(prompts, sources, **options)
            for number, result in painted:
                i = numbers[number]
                file = self.file(edits[i])
                make_folder(file.parent)
                if edits[i].keep_latents:
                    with new_file(file.with_suffix(LATENTS)) as scratch, scratch.open("wb") as opened:
                        np.save(opened, np.asarray(result.latents))
                result = replace(result, checkpoint=self.weights, designer=edits[i].designer, instruction=edits[i].instruction)
                result.save(file, overwrite=True)
                yield i, result


def paint(
    pipeline: EditPipeline, edits: Sequence[PictureRequest], folder: Path, settings: Settings, weights: str, *, progress: bool = False
) -> list[Image.Image]:
    """The pictures of all edits, in order; painted or read from `folder` (`PictureStore`).

    Raises:
        InputError: as in `EditPipeline`, or a picture cannot be written or read.
    """
    store = PictureStore(folder, pipeline.sampler, settings, weights)
    results = dict(store.paint(edits, progress=progress))
    return [open_picture(store.file(edit)) if (result := results[i]) is None else result.image for i, edit in enumerate(edits)]


def is_complete(file: Path) -> bool:
    """Whether a PNG is there to its end."""
    try:
        with file.open("rb") as opened:
            opened.seek(-len(END), os.SEEK_END)
            return opened.read() == END
    except OSError:  # nothing there, or shorter
        return False


def link(file: Path, name: Path) -> None:
    """Give a file another name; a copy where the file system has no links. What had that name is replaced.

    Raises:
        InputError: it cannot be written.
    """
    with write_errors(name.parent):
        name.parent.mkdir(parents=True, exist_ok=True)
        name.unlink(missing_ok=True)
    try:
        os.link(file, name)
    except OSError:
        with new_file(name) as scratch:
            shutil.copyfile(file, scratch)
