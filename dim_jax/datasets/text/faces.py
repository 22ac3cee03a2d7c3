"""Letters: Pillow's own font in four looks, and the fonts of a folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFont, features

from dim_jax.errors import InputError, check

SUFFIXES = (".ttf", ".otf", ".ttc")
LETTERS = "ABCXYZabcxyz0189"  # what a font must have
MISSING_GLYPH = "\uffff"  # no font has it
SLANT = 0.25  # to the right, for one up
STROKES = {"bold": 1 / 28, "outlined": 1 / 18}  # of the size, on either side of an edge
SUPERSAMPLING = 4


@dataclass(frozen=True)
class Face:
    """How letters look, by a word that sentences can use: "bold" letters, "DejaVu Serif Bold" letters."""

    name: str
    path: Path | None = None


BUILTIN_FACES = tuple(Face(name) for name in ("plain", "bold", "slanted", "outlined"))


def check_installed() -> None:
    """Refuse a Pillow that cannot scale letters. Raises InputError if it was built without FreeType."""
    if not features.check("freetype2"):
        raise InputError("Text needs a Pillow with FreeType. Install it from its wheels: pip install --force-reinstall pillow.")


def read_faces(folder: Path) -> tuple[list[Face], list[str]]:
    """The fonts of a folder and those below it, one of each name, by name; and the files left out, without Latin letters of both cases.

    Raises:
        InputError: there is no such folder or no font in it, or a font is damaged.
    """
    check(folder.is_dir(), f"{folder}: no such folder. Give one with fonts ({', '.join(SUFFIXES)}).")
    faces, left_out = dict[str, Face](), list[str]()
    for path in sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES):
        font = _font(path, 32)
        name = " ".join(part for part in font.getname() if part and part not in ("Regular", "Book"))
        if _latin(font):
            faces.setdefault(name, Face(name, path))
        else:
            left_out.append(path.name)
    check(faces, f"{folder}: no font with Latin letters in it ({', '.join(SUFFIXES)}). Give another folder.")
    return [faces[name] for name in sorted(faces)], left_out


def render_letters(face: Face, text: str, size: int) -> Image.Image:
    """A text as a mask (mode L), cropped to its ink; `size` is the font's, pixels to an em.

    It is drawn `SUPERSAMPLING` times as large and scaled down, since a stroke of small letters is thinner than a pixel.
    """
    font, look = _font(face.path, size * SUPERSAMPLING), face.name if face.path is None else "plain"
    stroke = round(size * SUPERSAMPLING * STROKES.get(look, 0))
    left, top, right, bottom = (round(edge) for edge in font.getbbox(text, stroke_width=stroke))
    lean = round(SLANT * (bottom - top)) if look == "slanted" else 0
    # Room for rounded edges, and sides that divide.
    width, height = (-(-length // SUPERSAMPLING) * SUPERSAMPLING + 2 * SUPERSAMPLING for length in (right - left + lean, bottom - top))
    canvas = Image.new("L", (width, height))
    corner = (SUPERSAMPLING - left, SUPERSAMPLING - top)
    ImageDraw.Draw(canvas).text(corner, text, 255, font, stroke_width=stroke)
    if look == "outlined":
        interior = Image.new("L", canvas.size)
        ImageDraw.Draw(interior).text(corner, text, 255, font)
        canvas = ImageChops.subtract(canvas, interior)
    if lean:
        shear = (1, SLANT, -lean, 0, 1, 0)
        canvas = canvas.transform(canvas.size, Image.Transform.AFFINE, shear, Image.Resampling.BILINEAR)
    small = canvas.reduce(SUPERSAMPLING)
    return small.crop(small.getbbox())


@cache
def _font(path: Path | None, size: int) -> ImageFont.FreeTypeFont:
    if path is None:
        font = ImageFont.load_default(size)
        assert isinstance(font, ImageFont.FreeTypeFont)
        return font
    try:
        # The simple layout: the other depends on whether Raqm is there.
        return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)
    except OSError as error:
        raise InputError(f"{path}: a damaged font ({error}). Remove it, or give another folder.") from error


def _latin(font: ImageFont.FreeTypeFont) -> bool:
    shapes = [np.asarray(font.getmask(letter)).tobytes() for letter in (*LETTERS, MISSING_GLYPH)]
    return len(set(shapes)) == len(shapes)


def other_faces(faces: Sequence[Face], face: Face) -> list[Face]:
    """All but one."""
    return [candidate for candidate in faces if candidate != face]
