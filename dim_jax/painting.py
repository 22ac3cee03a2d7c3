"""A painted picture with the settings that made it, and the files it is saved to."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dim_jax import __version__
from dim_jax.errors import InputError

GAP = 8  # white pixels between the pictures of a sheet


@dataclass(frozen=True)
class Painting:
    """A result and all that made it: `Settings(**settings)` paints it again. `source` is the picture that was edited."""

    image: Image.Image
    prompt: str
    seed: int
    settings: Mapping[str, Any]
    checkpoint: str
    dtype: str
    source: Image.Image | None = None

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write a PNG whose text chunks hold prompt, seed, settings (JSON), checkpoint and version; `read_metadata` reads them back.

        Raises:
            InputError: as `check_output`; or the disk is full.
        """
        info = PngInfo()
        for key, value in self.metadata().items():
            info.add_itxt(key, value)
        _write(self.image, check_output(path, overwrite=overwrite), info)

    def metadata(self) -> dict[str, str]:
        """What a saved picture says of itself."""
        return {
            "Software": f"dim_jax {__version__}",
            "prompt": self.prompt,
            "seed": str(self.seed),
            "settings": json.dumps(self.settings, ensure_ascii=False),
            "checkpoint": self.checkpoint,
            "dtype": self.dtype,
        }


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What `Painting.metadata` says, read from a saved picture; seed and settings as they were.

    Raises:
        InputError: the file is no picture, or was not written by `Painting.save`.
    """
    try:
        with Image.open(path) as image:
            text = {key: str(image.info[key]) for key in ("Software", "prompt", "seed", "settings", "checkpoint", "dtype")}
        settings = json.loads(text["settings"])
        return text | {"seed": int(text["seed"]), "settings": settings | {"size": tuple(settings["size"])}}
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{path}: no picture that was painted here ({error}). Some programs drop the text of a PNG.") from error


def sheet(paintings: Sequence[Painting]) -> Image.Image:
    """Source and result side by side, one row a painting; the source is scaled to the result's height."""
    rows = []
    for painting in paintings:
        source = painting.source
        high = painting.image.height
        scaled = [] if source is None else [source.resize((max(1, round(source.width * high / source.height)), high))]
        rows.append([*scaled, painting.image])
    width = max(sum(image.width for image in row) + GAP * (len(row) - 1) for row in rows)
    height = sum(row[0].height for row in rows) + GAP * (len(rows) - 1)
    canvas, top = Image.new("RGB", (width, height), "white"), 0
    for row in rows:
        left = 0
        for image in row:
            canvas.paste(image, (left, top))
            left += image.width + GAP
        top += row[0].height + GAP
    return canvas


def save_sheet(paintings: Sequence[Painting], path: str | Path, *, overwrite: bool = False) -> None:
    """Write `sheet` as a PNG.

    Raises:
        InputError: as `check_output`; or the disk is full.
    """
    _write(sheet(paintings), check_output(path, overwrite=overwrite), PngInfo())


def check_output(path: str | Path, *, overwrite: bool) -> Path:
    """The path of a PNG that may be written.

    Raises:
        InputError: it does not end in .png, its folder is missing or closed, or it exists and may not be overwritten.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise InputError(f"{path}: pictures are written as PNG, which keeps the prompt and the settings. Name a file that ends in .png.")
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist. Make it first, or choose another output.")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError(f"{path}: nothing may be written to the folder {path.parent}. Change its permissions, or choose another output.")
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is no file that could be overwritten. Choose another output.")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists. Choose another output, or overwrite it (--overwrite).")
    return path


def _write(image: Image.Image, path: Path, info: PngInfo) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        image.save(scratch, "PNG", pnginfo=info)
        scratch.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}). Free some space or choose another output.") from error
    finally:
        scratch.unlink(missing_ok=True)
