"""A painted picture with the settings that made it, and the files it is saved to."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dim_jax import __version__
from dim_jax.errors import InputError
from dim_jax.sheets import grid
from dim_jax.storage.folders import check_file, new_file
from dim_jax.storage.paths import AnyPath, as_path

ROUND = ("prompt", "seed", "settings", "designer", "instruction", "changed")


@dataclass(frozen=True)
class EditResult:
    """A result and all that made it: `Settings(**settings)` paints it again.

    `prompt` is what the painter read; where a designer wrote it from an `instruction`, `designer` names who. `source` is the picture
    that was edited, `earlier` the rounds that led to it, in order. `changed` is the share of pixels in [0, 1] that were painted, where
    the others were kept from the source. `latents` are what `image` was decoded from; a file does not keep them.
    """

    image: Image.Image
    prompt: str
    seed: int
    settings: Mapping[str, Any]
    checkpoint: str
    dtype: str
    source: Image.Image | None = None
    designer: str = "none"
    instruction: str = ""
    latents: Float[np.ndarray, "h w c"] | None = field(default=None, repr=False, compare=False)
    changed: float | None = None
    earlier: tuple["EditResult", ...] = ()

    def save(self, path: str | os.PathLike, *, overwrite: bool = False) -> None:
        """Write a PNG whose text chunks hold prompt, seed, settings (JSON), checkpoint, version and earlier rounds (JSON); `read_metadata`
        reads them back.

        Raises:
            InputError: as `check_output`; or the disk is full.
        """
        info = PngInfo()
        for key, value in self.metadata().items():
            info.add_itxt(key, value)
        save_picture(self.image, path, overwrite=overwrite, info=info)

    def metadata(self) -> dict[str, str]:
        """What a saved picture says of itself."""
        text = {key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for key, value in self._round().items()}
        earlier = json.dumps([painting._round() for painting in self.earlier], ensure_ascii=False)
        return {"Software": f"dim_jax {__version__}", "checkpoint": self.checkpoint, "dtype": self.dtype} | text | {"earlier": earlier}

    def _round(self) -> dict[str, Any]:
        """What may differ from one round to the next."""
        return {key: getattr(self, key) for key in ROUND}


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What `EditResult.metadata` says, read from a saved picture; numbers and settings as they were, of earlier rounds too.

    Raises:
        InputError: the file is no picture, or was not written by `EditResult.save`.
    """
    # What pictures of the first versions do not say.
    since = {"designer": "none", "instruction": "", "changed": "null", "earlier": "[]"}
    try:
        with Image.open(path) as image:
            found: dict[str, Any] = {key: str(image.info[key]) for key in ("Software", "prompt", "seed", "settings", "checkpoint", "dtype")}
            found |= {key: str(image.info.get(key, default)) for key, default in since.items()}
        found |= {key: json.loads(found[key]) for key in ("seed", "settings", "changed", "earlier")}
        for one in (found, *found["earlier"]):
            one["settings"]["size"] = tuple(one["settings"]["size"])
        return found
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path}: no picture that was painted here ({error}). Some programs drop the text of a PNG.") from error


def sheet(paintings: Sequence[EditResult]) -> Image.Image:
    """Source and result side by side, one row a painting; the source is scaled to the result's height, or to four times its width."""
    rows = []
    for painting in paintings:
        rows.append([painting.image])
        if (source := painting.source) is not None:
            scale = min(painting.image.height / source.height, 4 * painting.image.width / source.width)
            rows[-1].insert(0, source.resize((max(1, round(source.width * scale)), max(1, round(source.height * scale)))))
    return grid(rows)


def save_sheet(paintings: Sequence[EditResult], path: str | os.PathLike, *, overwrite: bool = False) -> None:
    """Write `sheet` as a PNG. Errors as in `save_picture`."""
    save_picture(sheet(paintings), path, overwrite=overwrite)


def save_picture(image: Image.Image, path: str | os.PathLike, *, overwrite: bool = False, info: PngInfo | None = None) -> None:
    """Write a picture as a PNG, which appears whole or not at all.

    Raises:
        InputError: as `check_output`; or the disk is full.
    """
    with new_file(check_output(path, overwrite=overwrite)) as scratch:
        image.save(scratch, "PNG", pnginfo=info)


def check_output(path: str | os.PathLike, *, overwrite: bool) -> AnyPath:
    """The path of a PNG that may be written.

    Raises:
        InputError: it does not end in .png, its folder is missing or closed, or it exists and may not be overwritten.
    """
    path = as_path(path)
    if path.suffix.lower() != ".png":
        raise InputError(f"{path}: pictures are written as PNG, which keeps the prompt and the settings. Name a file that ends in .png.")
    check_file(path, overwrite=overwrite)
    return path
