"""A background with one or two texts on it: their positions, how they are drawn, and random scenes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from random import Random

import numpy as np
from PIL import Image

from dim_jax.data.example import Split
from dim_jax.datasets.text.backgrounds import RGB, Background, contrast, luminance
from dim_jax.datasets.text.faces import Face, render_letters
from dim_jax.datasets.text.vocabulary import CASES, sample_text
from dim_jax.processing.pictures import max_filter

SIZES = ("small", "medium-sized", "large")
STEP = 1.5  # from one size to the next
SMALLEST, FEWEST_PIXELS = 0.1, 11  # small letters: share of the side, and at least so many pixels
MARGIN, WIDEST, HIGHEST = 0.06, 0.86, 0.3  # shares of the side
WIDE = 0.55  # a text that is wider has no left and right
RIM = 1 / 14  # of the size: the halo on pictures
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "middle", "right")
POSITIONS = tuple((row, column) for row in ROWS for column in COLUMNS)
MAX_TRIES = 40

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels


@dataclass(frozen=True)
class Label:
    """A text with its look and position (row, column). `size` is an index into `SIZES`."""

    text: str
    case: int
    face: Face
    colour: str
    size: int
    position: tuple[str, str]


@dataclass(frozen=True)
class Scene:
    """What a picture of this data set shows."""

    background: Background
    labels: tuple[Label, ...]

    def with_label(self, index: int, label: Label) -> "Scene":
        """The same with another label in the place of one."""
        return replace(self, labels=(*self.labels[:index], label, *self.labels[index + 1 :]))

    def is_legible(self, side: int) -> bool:
        """Whether every text can be read: within the margins, in a colour that stands out, and none over another."""
        boxes = [label_box(label, self.background, side) for label in self.labels]
        for (left, top, right, bottom), label in zip(boxes, self.labels, strict=True):
            width, height = right - left, bottom - top
            if width > WIDEST * side or height > HIGHEST * side or label.colour not in self.background.readable:
                return False
            if width > WIDE * side and label.position[1] != "middle":
                return False
        return not any(_overlap(first, second) for i, first in enumerate(boxes) for second in boxes[:i])


def font_pixels(size: int, side: int) -> int:
    """The em of a size on a picture of `side` pixels."""
    return round(max(SMALLEST * side, FEWEST_PIXELS) * STEP**size)


def label_box(label: Label, background: Background, side: int) -> Box:
    """Where a text is drawn, its halo included."""
    mask, margin = _mask(label, background, side), round(MARGIN * side)
    row, column = label.position
    left = {"left": margin, "middle": (side - mask.width) // 2, "right": side - margin - mask.width}[column]
    top = {"top": margin, "middle": (side - mask.height) // 2, "bottom": side - margin - mask.height}[row]
    return left, top, left + mask.width, top + mask.height


def render_scene(scene: Scene, background_image: Image.Image) -> Image.Image:
    """The picture of a scene on its background (`Background.paint`)."""
    picture = background_image.copy()
    for label in scene.labels:
        rim, side = _rim(label, scene.background, background_image.width), background_image.width
        corner = label_box(label, scene.background, side)[:2]
        if rim:
            rim_colour = max(("black", "white"), key=lambda name: contrast(luminance(RGB[name]), luminance(RGB[label.colour])))
            picture.paste(RGB[rim_colour], corner, _mask(label, scene.background, side))
        bare = render_letters(label.face, label.text, font_pixels(label.size, side))
        picture.paste(RGB[label.colour], (corner[0] + rim, corner[1] + rim), bare)
    return picture


def sample_scene(rng: Random, split: Split, backgrounds: Sequence[Background], faces: Sequence[Face], side: int) -> Scene:
    """A random legible scene with backgrounds and words of the split."""
    while True:
        background, count = rng.choice(backgrounds), rng.choice((1, 1, 2))
        for _ in range(MAX_TRIES):
            case, colours, sizes = rng.randrange(len(CASES)), background.readable, len(SIZES)
            labels = tuple(
                Label(
                    sample_text(rng, split, case), case, rng.choice(faces), rng.choice(colours), rng.randrange(sizes), rng.choice(POSITIONS)
                )
                for _ in range(count)
            )
            scene = Scene(background, labels)
            if len({label.text.lower() for label in labels}) == count and scene.is_legible(side):
                return scene


def _rim(label: Label, background: Background, side: int) -> int:
    return max(1, round(RIM * font_pixels(label.size, side))) if background.halo else 0


def _mask(label: Label, background: Background, side: int) -> Image.Image:
    return _outlined_letters(label.face, label.text, font_pixels(label.size, side), _rim(label, background, side))


@lru_cache(256)
def _outlined_letters(face: Face, text: str, size: int, rim: int) -> Image.Image:
    """The letters, grown by the rim on every side."""
    bare = render_letters(face, text, size)
    if not rim:
        return bare
    return Image.fromarray(max_filter(np.pad(np.asarray(bare), rim), rim))


def _overlap(a: Box, b: Box) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]
