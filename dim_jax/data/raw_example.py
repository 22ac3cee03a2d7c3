"""A row of any source as it is stored: what it says, and its pictures unread, as the bytes of files."""

import io
from collections.abc import Callable
from typing import NamedTuple

from PIL import Image

from dim_jax.data.pictures import picture_size, read_picture


class LazyImage(NamedTuple):
    """A picture that has not been read: `name` stands in errors, `read` gives the bytes of its file."""

    name: str
    read: Callable[[], bytes]

    def picture(self) -> Image.Image:
        return read_picture(io.BytesIO(self.read()), self.name)

    def size(self) -> tuple[int, int]:
        return picture_size(io.BytesIO(self.read()), self.name)


class RawExample(NamedTuple):
    """What a row says, its pictures unread; without `source` the texts are captions. Where a source names no rules, `rule` is empty."""

    key: str
    texts: tuple[str, ...]
    blueprint: str | None
    source: LazyImage | None
    target: LazyImage
    rule: str = ""
