"""Stores pictures by a hash of their contents, so the same picture is stored once; files appear complete or not at all."""

import hashlib
import io
from pathlib import Path

from PIL import Image

from dim_jax.processing.pictures import read_header
from dim_jax.storage.folders import new_file

SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}
FOLDER = "image"


def store(folder: Path, data: bytes, decoded: Image.Image) -> str:
    """Write a picture's file under `folder`, unless it is there; returns its path from `folder`, such as "image/3f/3fa0...e1.jpg".

    JPEG, PNG and WebP stay as they are, to the byte; a picture of any other format is written as PNG, as it was `decoded`.
    """
    suffix = SUFFIXES.get(read_header(io.BytesIO(data), "the file").format)
    if suffix is None:
        file, suffix = io.BytesIO(), ".png"
        decoded.save(file, "PNG")
        data = file.getvalue()
    name = hashlib.sha256(data).hexdigest()
    path = folder / FOLDER / name[:2] / f"{name}{suffix}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as scratch:
            scratch.write_bytes(data)
    return path.relative_to(folder).as_posix()
