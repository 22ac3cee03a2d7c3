"""The picture that a model made, with the settings that made it, and the file that keeps both."""

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
from dim_jax.errors import InputError, input_errors
from dim_jax.sheets import grid
from dim_jax.storage.folders import check_file, new_file
from dim_jax.storage.jsonl import json_loads
from dim_jax.storage.paths import AnyPath, as_path

ROUND = ("prompt", "seed", "settings", "designer", "instruction", "changed")


@dataclass(frozen=True)
class EditResult:
    """A result and all that made it but a mask: with the same mask or none, `Settings(**settings)` makes it again.

    `prompt` is what the encoder read. If a designer wrote it from an `instruction`, `designer` is its name. `source` is the picture
    that was edited, `earlier` the rounds that led to it, in order. `changed` is the share of pixels in [0, 1] that
    changed; the others were taken from the source. `latents` are what `image` was decoded from; a file does not keep them.
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
        save_picture(self.image, path, overwrite=overwrite, info=self.png_info())

    def png_info(self) -> PngInfo:
        """The text chunks of a saved picture, as Pillow writes them."""
        info = PngInfo()
        for key, value in self.metadata().items():
            info.add_itxt(key, value)
        return info

    def metadata(self) -> dict[str, str]:
        """The text chunks of a saved picture."""
        text = {key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for key, value in self._round().items()}
        earlier = json.dumps([result._round() for result in self.earlier], ensure_ascii=False)
        return {"Software": f"dim_jax {__version__}", "checkpoint": self.checkpoint, "dtype": self.dtype} | text | {"earlier": earlier}

    def _round(self) -> dict[str, Any]:
        """What may differ from one round to the next."""
        return {key: getattr(self, key) for key in ROUND}


def read_metadata(path: str | Path) -> dict[str, Any]:
    """`EditResult.metadata` read from a saved picture; numbers and settings have their types again, those of earlier rounds too.

    Raises:
        InputError: the file is not a picture, or was not written by `EditResult.save`.
    """
    # Pictures of the first versions lack these.
    defaults = {"designer": "none", "instruction": "", "changed": "null", "earlier": "[]"}
    remedy = "Some programs remove the text of a PNG; give the original file."
    with input_errors(
        lambda error: f"{path}: is not a picture that dim_jax saved ({error}). {remedy}", OSError, KeyError, ValueError, TypeError
    ):
        with Image.open(path) as image:
            metadata: dict[str, Any] = {
                key: str(image.info[key]) for key in ("Software", "prompt", "seed", "settings", "checkpoint", "dtype")
            }
            metadata |= {key: str(image.info.get(key, default)) for key, default in defaults.items()}
        metadata |= {key: json_loads(metadata[key]) for key in ("seed", "settings", "changed", "earlier")}
        for result in (metadata, *metadata["earlier"]):
            size = result["settings"]["size"]
            result["settings"]["size"] = None if size is None else tuple(size)
        return metadata


def sheet(results: Sequence[EditResult]) -> Image.Image:
    """Source and result side by side, one row a result; the source is scaled to the result's height, or to four times its width."""
    rows = []
    for result in results:
        rows.append([result.image])
        if (source := result.source) is not None:
            scale = min(result.image.height / source.height, 4 * result.image.width / source.width)
            rows[-1].insert(0, source.resize((max(1, round(source.width * scale)), max(1, round(source.height * scale)))))
    return grid(rows)


def save_sheet(results: Sequence[EditResult], path: str | os.PathLike, *, overwrite: bool = False) -> None:
    """Write `sheet` as a PNG. Errors as in `save_picture`."""
    save_picture(sheet(results), path, overwrite=overwrite)


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
