"""Encodes pictures for a designer: as the painter sees them, in a format that every server reads."""

import hashlib
import io
from pathlib import Path
from typing import NamedTuple

from dim_jax.errors import InputError
from dim_jax.processing.pictures import open_picture, read_header
from dim_jax.processing.png_texts import strip_png_texts

MIME_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}


class EncodedPicture(NamedTuple):
    """The bytes of a picture and their MIME type."""

    data: bytes
    mime: str


def digest(path: Path) -> str:
    """SHA-256 of a picture's file. Raises InputError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError) as error:  # ValueError: no file can have such a name
        raise InputError(f"{path}: the picture cannot be read ({getattr(error, 'strerror', None) or error}). Check its path.") from error


def encode_picture(path: Path) -> EncodedPicture:
    """A JPEG or WebP unchanged, a PNG without its texts. Any other picture becomes a PNG, as do those that a server may decode differently
    from the painter: rotated by EXIF, with damaged metadata, or transparent.

    Raises:
        InputError: as `open_picture`: it is damaged, or not a picture.
    """
    picture, data = open_picture(path), path.read_bytes()
    header = read_header(io.BytesIO(data), str(path))
    if header.plain and header.format in MIME_TYPES:
        return EncodedPicture(strip_png_texts(data), MIME_TYPES[header.format])
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return EncodedPicture(file.getvalue(), "image/png")
