"""Sheets of pictures and texts, for people to look at: of data sets, training runs and evaluations."""

import textwrap
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

GAP = 8  # white pixels between the pictures of a sheet
TEXT = 11  # height of its letters, pixels
NAME = 130  # width of the column with the names of rows, pixels
Captioned = tuple[Sequence[Image.Image], str]  # pictures side by side, and the text below them


def grid(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Rows of pictures on white, aligned at the top and at the left."""
    heights = [max(image.height for image in row) for row in rows]
    width = max(sum(image.width for image in row) + GAP * (len(row) - 1) for row in rows)
    canvas, top = Image.new("RGB", (width, sum(heights) + GAP * (len(rows) - 1)), "white"), 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for image in row:
            canvas.paste(image, (left, top))
            left += image.width + GAP
        top += height + GAP
    return canvas


def with_caption(pictures: Sequence[Image.Image], text: str, *, zoom: int = 1) -> Image.Image:
    """Pictures side by side, every pixel as `zoom` x `zoom`, and below them a text in lines of their width."""
    large = [image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST) for image in pictures]
    return grid([large, [render_text(text, sum(image.width for image in large) + GAP * (len(large) - 1))]])


def named_rows(rows: Mapping[str, Sequence[Captioned]]) -> Image.Image:
    """A row for each name: the name, then its captioned pictures."""
    return grid([[render_text(name, NAME), *(with_caption(pictures, text) for pictures, text in row)] for name, row in rows.items()])


def render_text(text: str, width: int) -> Image.Image:
    """A text on white, wrapped to a width in pixels; as high as it needs."""
    font = ImageFont.load_default(TEXT)
    lines = textwrap.wrap(text, max(1, int(width / font.getlength("n"))))
    canvas = Image.new("RGB", (width, round(1.5 * TEXT * len(lines)) + 1), "white")
    ImageDraw.Draw(canvas).multiline_text((0, 0), "\n".join(lines), "black", font, spacing=TEXT / 4)
    return canvas
