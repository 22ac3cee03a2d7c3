"""What texts are written on: plain colours and patterns of two, or pictures of the user's. Which colours can be read on them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from pathlib import Path

import numpy as np
from PIL import Image

from dim_jax.data.example import Split
from dim_jax.datasets.hashing import stable_hash
from dim_jax.datasets.measures import PALETTE, main_colours
from dim_jax.datasets.text.vocabulary import SEED
from dim_jax.datasets.words import join_with_and
from dim_jax.errors import check
from dim_jax.processing.pictures import cover_crop, open_picture

HELD_OUT = 0.1  # of the grounds, held out
MIN_CONTRAST = 3.0  # of letters and ground at least: WCAG 2.2 (1.4.3) for large text
MIN_READABLE_COLOURS = 4  # colours that can be read on a ground
MIN_COLOUR_DISTANCE = 110  # distance in RGB of two colours that nobody takes for one
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif")
RGB = {name: shades[0] for name, shades in PALETTE.items()}
PATTERNS = {
    "gradient": "a ground that fades from {first} at the top to {second} at the bottom",
    "stripes": "a ground of {first} and {second} stripes",
    "checks": "a ground of {first} and {second} checks",
    "dots": "{a_first} ground with {second} dots",
    "frame": "{a_first} ground in {a_second} frame",
}


@dataclass(frozen=True)
class Background:
    """A pattern of two colours (one is plain), or the picture of a file. `words` name it in sentences, `key` tells it from others."""

    key: str
    words: str
    colours: tuple[str, ...] = ()
    path: Path | None = None

    @property
    def halo(self) -> bool:
        """Whether letters need a rim to be read on it whatever is there."""
        return self.path is not None

    def paint(self, side: int) -> Image.Image:
        """The ground alone. Raises InputError as `open_picture`."""
        if self.path is not None:
            return cover_crop(open_picture(self.path), (side, side))
        first, second = (np.array(RGB[name], np.float64) for name in (self.colours * 2)[:2])
        return Image.fromarray(np.rint(first + _pattern(self.key.split()[0], side)[..., None] * (second - first)).astype(np.uint8))

    def describe(self, picture: Image.Image) -> str:
        """`words`, and of a file its colours."""
        return f"{self.words} in mainly {join_with_and(main_colours(np.asarray(picture)))}" if self.halo else self.words

    @cached_property
    def readable(self) -> tuple[str, ...]:
        """The colours of letters that stand out from all of it."""
        if self.halo:
            return tuple(RGB)
        # Between two colours a gradient may be darker than both: red and green meet in brown.
        fractions = np.linspace(0, 1, 17 if self.key.startswith("gradient") else 2)[:, None]
        first, second = (np.array(RGB[name], np.float64) for name in (self.colours * 2)[:2])
        luminances = [luminance(tuple(shade)) for shade in first + fractions * (second - first)]
        low, high = min(luminances), max(luminances)
        levels = {name: luminance(shade) for name, shade in RGB.items()}
        return tuple(
            name
            for name, level in levels.items()
            if not low < level < high and min(contrast(level, low), contrast(level, high)) >= MIN_CONTRAST
        )


def luminance(shade: tuple[float | int, ...]) -> float:
    """Relative luminance of red, green and blue in [0, 255], in [0, 1]. Source: WCAG 2.2, for sRGB."""
    red, green, blue = (level / 255 / 12.92 if level / 255 <= 0.04045 else ((level / 255 + 0.055) / 1.055) ** 2.4 for level in shade)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def distinct_colours(name: str, names: Sequence[str]) -> list[str]:
    """Those of some colours that differ plainly from one."""
    return [other for other in names if np.linalg.norm(np.subtract(RGB[name], RGB[other])) >= MIN_COLOUR_DISTANCE]


def contrast(a: float, b: float) -> float:
    """Of two luminances: (lighter + 0.05) / (darker + 0.05), from 1 to 21. Source: WCAG 2.2."""
    return (max(a, b) + 0.05) / (min(a, b) + 0.05)


def pattern_backgrounds() -> list[Background]:
    """Every pattern on which enough colours can be read."""
    grounds = [Background(f"plain {name}", f"a plain {name} ground", (name,)) for name in RGB]
    for first, second in permutations(RGB, 2):
        words = {"first": first, "second": second, "a_first": _a(first), "a_second": _a(second)}
        grounds += [Background(f"{kind} {first}/{second}", text.format_map(words), (first, second)) for kind, text in PATTERNS.items()]
    return [ground for ground in grounds if len(ground.readable) >= MIN_READABLE_COLOURS]


def read_backgrounds(folder: Path) -> list[Background]:
    """The pictures of a folder and those below it, each content once, by the hash of their bytes.

    Raises:
        InputError: there is no such folder, or it has fewer than two pictures: one is for the test.
    """
    check(folder.is_dir(), f"{folder}: no such folder. Give one with pictures to write on.")
    files = {hashlib.sha256(file.read_bytes()).hexdigest(): file for file in sorted(folder.rglob("*")) if file.suffix.lower() in SUFFIXES}
    check(len(files) >= 2, f"{folder}: {len(files)} different pictures in it. Give at least two, so that one can be held out for the test.")
    return [Background(key, "a picture", path=files[key]) for key in sorted(files)]


def select_split(backgrounds: Sequence[Background], split: Split) -> list[Background]:
    """The grounds of one split, by a hash of what they are; at least one of each split."""
    order = sorted(backgrounds, key=lambda ground: stable_hash(SEED, ground.key))
    held_out = max(1, round(HELD_OUT * len(order)))
    return order[:held_out] if split == "test" else order[held_out:]


def _a(colour: str) -> str:
    return f"{'an' if colour[0] in 'aeiou' else 'a'} {colour}"


def _pattern(kind: str, side: int) -> np.ndarray:
    """The share of the second colour at every pixel."""
    y, x = np.mgrid[:side, :side] / side
    if kind == "gradient":
        return y
    if kind == "stripes":
        return np.floor(x * 8) % 2
    if kind == "checks":
        return (np.floor(x * 8) + np.floor(y * 8)) % 2
    if kind == "dots":
        return ((x * 8 % 1 - 0.5) ** 2 + (y * 8 % 1 - 0.5) ** 2 < 0.06).astype(float)
    if kind == "frame":
        return (np.maximum(abs(x - 0.5), abs(y - 0.5)) > 0.47).astype(float)
    return np.zeros((side, side))
