"""Pictures and texts laid out on one picture, to look at: what data sets, training runs and evaluations show."""

import textwrap
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

GAP = 8  # white pixels between the pictures of a sheet
TEXT = 11  # height of its letters, pixels
NAME = 130  # width of the column with the names of rows, pixels
Shown = tuple[Sequence[Image.Image], str]  # pictures side by side, and the text below them


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


def labelled(pictures: Sequence[Image.Image], text: str, *, zoom: int = 1) -> Image.Image:
    """Pictures side by side, every pixel as `zoom` x `zoom`, and below them a text in lines of their width."""
    large = [image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST) for image in pictures]
    return grid([large, [written(text, sum(image.width for image in large) + GAP * (len(large) - 1))]])


def named_rows(rows: Mapping[str, Sequence[Shown]]) -> Image.Image:
    """A row for each name: the name, and after it some labelled pictures."""
    return grid([[written(name, NAME), *(labelled(*one) for one in shown)] for name, shown in rows.items()])


def written(text: str, width: int) -> Image.Image:
    """A text in lines of a width in pixels, as high as it needs."""
    font = ImageFont.load_default(TEXT)
    lines = textwrap.wrap(text, max(1, int(width / font.getlength("n"))))
    canvas = Image.new("RGB", (width, round(1.5 * TEXT * len(lines)) + 1), "white")
    ImageDraw.Draw(canvas).multiline_text((0, 0), "\n".join(lines), "black", font, spacing=TEXT / 4)
    return canvas
