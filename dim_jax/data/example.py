"""Training examples, edits, captions or judgements of results: with decoded pictures, or with the bytes of picture files."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from PIL import Image

from dim_jax.errors import InputError
from dim_jax.processing.pictures import picture_size, read_picture

Kind = Literal["edit", "caption", "judgement"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
JUDGEMENT: Kind = "judgement"  # and the rule of every example of that kind


def as_kind(name: str) -> Kind:
    """The kind of that name.

    Raises:
        InputError: `name` is not one of `KINDS`.
    """
    for kind in KINDS:
        if name == kind:
            return kind
    raise InputError(f'data.mix has the kind "{name}"; kinds are {", ".join(KINDS)}.')


class Texts(NamedTuple):
    """The texts of an example: instructions with one meaning, or captions, and the blueprint or None."""

    texts: tuple[str, ...]
    blueprint: str | None


@dataclass(frozen=True)
class Example:
    """An edit, a picture with captions, or a judgement of what a painter made of a picture.

    Attributes:
        source: the picture to edit; None for a caption.
        target: the picture to generate; of a judgement the painter's result. Both are RGB.
        rule: the rule that makes the target from the source, if the data set has rules; else "edit", or "caption" without a source.
        texts: instructions with one meaning, or captions of the target. Each is complete by itself.
        blueprint: the designer's text of the edit, or its answer whether the result is what was asked for; None for a caption.
        key: names the example, such as "noto/1f44d>noto/1f44d-1f3fd".
    """

    source: Image.Image | None
    target: Image.Image
    rule: str
    texts: tuple[str, ...]
    blueprint: str | None
    key: str


class LazyImage(NamedTuple):
    """A picture that is not read yet: `name` is for errors, `read` returns the bytes of its file."""

    name: str
    read: Callable[[], bytes]

    def picture(self) -> Image.Image:
        return read_picture(io.BytesIO(self.read()), self.name)

    def size(self) -> tuple[int, int]:
        return picture_size(io.BytesIO(self.read()), self.name)


class RawExample(NamedTuple):
    """An example as it is stored, its pictures not read yet. Without `source` the texts are captions; `rule` may be empty."""

    key: str
    texts: tuple[str, ...]
    blueprint: str | None
    source: LazyImage | None
    target: LazyImage
    rule: str = ""

    def decoded(self, decode: Callable[[LazyImage], Image.Image] = LazyImage.picture) -> Example:
        """The example with decoded pictures; raises InputError if one cannot be decoded."""
        source = None if self.source is None else decode(self.source)
        rule = self.rule or ("caption" if source is None else "edit")
        return Example(source, decode(self.target), rule, self.texts, self.blueprint, self.key)
