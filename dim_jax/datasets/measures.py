"""Measurements of pictures in words: colours, positions, differences."""

from functools import cache

import numpy as np
from jaxtyping import Bool, Int, UInt8

BIN = 8  # of a colour's 256 levels, when its word is looked up
Pixels = UInt8[np.ndarray, "h w 3"]
Mask = Bool[np.ndarray, "h w"]

# Colours by the words that people use for them. Several shades may share a word.
PALETTE = {
    "black": [(20, 20, 24)],
    "dark grey": [(80, 84, 92)],
    "grey": [(140, 146, 154)],
    "light grey": [(205, 210, 216)],
    "white": [(250, 250, 250)],
    "red": [(221, 46, 68), (240, 58, 50), (190, 25, 45)],
    "pink": [(244, 140, 170), (255, 105, 180)],
    "orange": [(244, 140, 12), (255, 130, 45)],
    "yellow": [(255, 204, 77), (255, 220, 60), (252, 194, 27)],
    "cream": [(247, 222, 206), (250, 220, 188)],
    "tan": [(212, 171, 136), (224, 187, 149), (243, 210, 162)],
    "brown": [(154, 99, 62), (175, 126, 87), (191, 143, 104)],
    "dark brown": [(92, 64, 50), (101, 60, 40), (125, 78, 50)],
    "green": [(119, 178, 85), (70, 160, 70), (0, 210, 106)],
    "dark green": [(62, 114, 29), (0, 100, 60)],
    "light blue": [(136, 201, 249), (110, 200, 255), (187, 221, 245)],
    "blue": [(59, 136, 195), (30, 110, 225), (0, 116, 186)],
    "dark blue": [(38, 67, 130), (25, 40, 100)],
    "purple": [(146, 102, 204), (120, 80, 180), (170, 142, 214)],
}


def main_colours(pixels: Pixels, limit: int = 3) -> tuple[str, ...]:
    """The words of the colours that cover most of the drawing, the largest first; each covers at least a tenth of it.

    White counts only if there is no other colour, since the background is white too.
    """
    coloured = pixels[foreground_mask(pixels)]
    if not len(coloured):
        return ("white",)
    red, green, blue = (coloured // BIN).T
    counts = np.bincount(_nearest()[red, green, blue], minlength=len(PALETTE))
    order = np.argsort(-counts, kind="stable")
    large = [number for number in order[:limit] if counts[number] >= 0.1 * len(coloured)]
    return tuple(list(PALETTE)[number] for number in large or order[:1])


@cache
def _nearest() -> Int[np.ndarray, "bins bins bins"]:
    """For every small cube of RGB the number of the word in `PALETTE` whose shade is nearest to its centre."""
    centres = np.stack(np.meshgrid(*[np.arange(BIN // 2, 256, BIN)] * 3, indexing="ij"), axis=-1)
    shades = [(number, shade) for number, shades in enumerate(PALETTE.values()) for shade in shades]
    distances = np.stack([np.square(centres - np.array(shade)).sum(-1) for _, shade in shades])
    return np.array([number for number, _ in shades])[distances.argmin(0)]


def foreground_mask(pixels: Pixels) -> Mask:
    """The mask of the drawing: all pixels that are not white."""
    return _any_channel(pixels < 244)


def changed_mask(a: Pixels, b: Pixels) -> Mask:
    """The mask of pixels that differ visibly."""
    return _any_channel(np.maximum(a, b) - np.minimum(a, b) > 24)


def _any_channel(mask: Bool[np.ndarray, "h w 3"]) -> Mask:
    return mask[..., 0] | mask[..., 1] | mask[..., 2]


def bounding_box(mask: Mask) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a mask's True pixels, as fractions of the sides in [0, 1]; the whole picture if there are none."""
    if not mask.any():
        return 0.0, 0.0, 1.0, 1.0
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    height, width = mask.shape
    left, top, right, bottom = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return float(left / width), float(top / height), float(right / width), float(bottom / height)


def position_in_words(left: float, right: float, top: float, bottom: float) -> str:
    """The centre of a box in a grid of 3 x 3, in words."""
    across, down = (left + right) / 2, (top + bottom) / 2
    column = "left" if across < 0.4 else "right" if across > 0.6 else ""
    row = "upper" if down < 0.4 else "lower" if down > 0.6 else ""
    return f"the {' '.join(word for word in (row, column) if word) or 'middle'} part"
