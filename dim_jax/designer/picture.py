"""Pictures as they are sent to a designer: as the painter will see them, in a format that every server reads."""

import hashlib
import io
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from dim_jax.data.pictures import ORIENTATION, open_picture
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
    except OSError as error:
        raise InputError(f"{path}: the picture cannot be read ({error.strerror}). Check its path.") from error


def sent(path: Path) -> Sent:
    """A PNG, JPEG or WebP as it is; a PNG of any other picture, and of one that is turned by its metadata or transparent, which servers
    show otherwise than the painter sees it.

    Raises:
        InputError: as `open_picture`: it is damaged, or no picture.
    """
    picture = open_picture(path)
    with Image.open(path) as image:
        plain = image.getexif().get(ORIENTATION, 1) == 1 and not image.has_transparency_data and image.mode in ("RGB", "L")
        if plain and image.format in SENT:
            return Sent(path.read_bytes(), SENT[image.format])
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return Sent(file.getvalue(), "image/png")
