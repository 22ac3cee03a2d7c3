"""What a model is trained on: an edit or a caption, with its pictures decoded, or still the bytes of files."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from PIL import Image

from dim_jax.data.pictures import picture_size, read_picture
from dim_jax.errors import InputError

Kind = Literal["edit", "caption"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


def as_kind(name: str) -> Kind:
    """Refuse what is not a kind of example.

    Raises:
        InputError: `name` is none of `KINDS`.
    """
    for kind in KINDS:
        if name == kind:
            return kind
    raise InputError(f'data.mix has the kind "{name}", but kinds are {" and ".join(KINDS)}.')


class Texts(NamedTuple):
    """The texts of an example: wordings of the instruction, or captions; and the blueprint, if there is one."""

    texts: tuple[str, ...]
    blueprint: str | None


@dataclass(frozen=True)
class Example:
    """An edit, or a picture with captions.

    Attributes:
        source: the picture to edit; None for a caption.
        target: the picture to paint. Both are RGB.
        rule: how the target follows from the source, where the data set says so; else "edit", or "caption" without a source.
        texts: wordings of the instruction, or captions of the target. Each says it all.
        blueprint: the edit as a designer writes it; None for a caption.
        key: names the example, such as "noto/1f44d>noto/1f44d-1f3fd".
    """

    source: Image.Image | None
    target: Image.Image
    rule: str
    texts: tuple[str, ...]
    blueprint: str | None
    key: str


class LazyImage(NamedTuple):
    """A picture that has not been read: `name` stands in errors, `read` gives the bytes of its file."""

    name: str
    read: Callable[[], bytes]

    def picture(self) -> Image.Image:
        return read_picture(io.BytesIO(self.read()), self.name)

    def size(self) -> tuple[int, int]:
        return picture_size(io.BytesIO(self.read()), self.name)


class RawExample(NamedTuple):
    """An example as it is stored, its pictures unread; without `source` the texts are captions. Without a rule, `rule` is empty."""

    key: str
    texts: tuple[str, ...]
    blueprint: str | None
    source: LazyImage | None
    target: LazyImage
    rule: str = ""

    def decoded(self, decode: Callable[[LazyImage], Image.Image] = LazyImage.picture) -> Example:
        """The example with its pictures read; raises InputError where one cannot be."""
        source = None if self.source is None else decode(self.source)
        rule = self.rule or ("caption" if source is None else "edit")
        return Example(source, decode(self.target), rule, self.texts, self.blueprint, self.key)
