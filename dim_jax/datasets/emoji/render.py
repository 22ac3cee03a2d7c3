"""Drawings to pixels."""

import io
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dim_jax.datasets.emoji.names import Emoji
from dim_jax.datasets.emoji.packages import Drawing
from dim_jax.errors import InputError

SIDE = 64  # pixels, unless another is asked for
Pixels = UInt8[np.ndarray, "side side 3"]


@dataclass(frozen=True)
class RenderedEmoji:
    """An emoji as a set draws it, with its main colours in words."""

    set: str
    emoji: Emoji
    pixels: Pixels
    colours: tuple[str, ...]


def render(drawing: Drawing, where: str, side: int) -> Pixels:
    """A square of `side` pixels with a drawing on white, the same bytes every time. SVGs are drawn at that size, pictures scaled (Lanczos).

    Raises:
        InputError: the drawing is damaged (`where` names its archive).
    """
    try:
        if isinstance(drawing.data, bytes):
            with Image.open(io.BytesIO(drawing.data)) as file:
                picture = file.convert("RGBA")
            ground = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(ground, picture).convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
        else:
            picture = Image.open(io.BytesIO(_svg(drawing.data, side))).convert("RGB")
    except (OSError, ValueError) as error:
        raise InputError(f"{where}: the drawing of {drawing.code} is damaged ({error}). Fetch the package again.") from error
    square = Image.new("RGB", (side, side), "white")  # a drawing that is not square keeps its ratio
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return np.asarray(square)


def _svg(text: str, side: int) -> bytes:
    import resvg_py  # of the extra `data`

    # One side is given: the other follows, and of a tall drawing the height is the longer one.
    width, height = (float(side) for side in text.split('viewBox="', 1)[1].split('"', 1)[0].split()[2:])
    wide, tall = (side, None) if width >= height else (None, side)
    return bytes(resvg_py.svg_to_bytes(svg_string=text, background="#ffffff", skip_system_fonts=True, width=wide, height=tall))
