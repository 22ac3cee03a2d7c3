"""Pictures as they are sent to a designer: as the painter will see them, in a format that every server reads."""

import hashlib
import io
from pathlib import Path
from typing import NamedTuple

from dim_jax.data.pictures import open_picture, read_header, without_texts
from dim_jax.errors import InputError

SENT = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}


class Sent(NamedTuple):
    """The bytes of a file and what they are."""

    data: bytes
    mime: str


def digest(path: Path) -> str:
    """SHA-256 of a picture's file.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError) as error:  # ValueError: no file can have such a name
        raise InputError(f"{path}: the picture cannot be read ({getattr(error, 'strerror', None) or error}). Check its path.") from error


def sent(path: Path) -> Sent:
    """A JPEG or WebP as it is, a PNG without its texts; a PNG of any other picture, and of one that servers may show otherwise than the
    painter sees it: turned by its metadata, with metadata that cannot be read, or transparent.

    Raises:
        InputError: as `open_picture`: it is damaged, or no picture.
    """
    picture, data = open_picture(path), path.read_bytes()
    header = read_header(io.BytesIO(data), str(path))
    if header.plain and header.format in SENT:
        return Sent(without_texts(data), SENT[header.format])
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return Sent(file.getvalue(), "image/png")
