"""Masks as a user names them: a picture, or a rectangle."""

import re

from PIL import Image

from dim_jax.errors import InputError, check, prefix_errors
from dim_jax.processing.pictures import open_picture
from dim_jax.storage.paths import as_path, local_path

RECTANGLE = re.compile(r"[-+\d.%\s]+(?:,[-+\d.%\s]*){1,}")
NUMBER = re.compile(r"(\d{1,9})|(\d{1,3}(?:\.\d{1,9})?)%")


def open_mask(text: str, size: tuple[int, int]) -> Image.Image:
    """A grey picture of `size` (width, height), white where an edit may change something.

    Args:
        text: the path or address of a picture, read as `open_picture` reads it and made grey: so what is transparent is white; or
            "X,Y,W,H", a rectangle from its upper left corner, each number in pixels or in percent of the width or height.

    Raises:
        InputError: the rectangle is none, is empty or reaches beyond the picture; or the picture has another size, is black everywhere, or
            as in `open_picture`.
    """
    mask = Image.new("L", size)
    if RECTANGLE.fullmatch(text):
        mask.paste(255, _rectangle(text, size))
        return mask
    picture = open_picture(local_path(as_path(text))).convert("L")
    with prefix_errors(text):
        check_mask(picture, size)
    return picture


def check_mask(mask: Image.Image, size: tuple[int, int]) -> None:
    """Refuses a mask under which nothing can be painted.

    Raises:
        InputError: it has not the `size` (width, height) of the picture that it is for, or is black everywhere.
    """
    if mask.size != size:
        raise InputError(
            f"The mask is {mask.width} x {mask.height} pixels, but the picture {size[0]} x {size[1]}. Give it the size of the picture."
        )
    check(mask.convert("L").getbbox(), "The mask is black everywhere, so nothing may change. Make white what may.")


def _rectangle(text: str, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom in pixels."""
    numbers = [NUMBER.fullmatch(word.strip()) for word in text.split(",")]
    if len(numbers) != 4 or not all(numbers):
        raise InputError(f"--mask {text}: a rectangle is X,Y,W,H in pixels, such as 10,20,100,50, or in percent, such as 10%,20%,50%,25%.")
    x, y, width, height = (
        int(number[1]) if number[1] else float(number[2]) / 100 * side
        for number, side in zip((number for number in numbers if number), (*size, *size), strict=True)
    )
    left, top, right, bottom = round(x), round(y), round(x + width), round(y + height)
    whole = f"--mask {text}: the picture is {size[0]} x {size[1]} pixels"
    check(right <= size[0] and bottom <= size[1], f"{whole}, but the rectangle ends at {right}, {bottom}. Keep it within the picture.")
    check(left < right and top < bottom, f"{whole}, and the rectangle holds none of them. Give it a width and a height.")
    return left, top, right, bottom
