"""Examples of a data set on one picture, to look at."""

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

Shown = tuple[Image.Image, Image.Image, Sequence[str]]  # source, target, and the instruction in several wordings


def contact_sheet(rows: Mapping[str, Sequence[Shown]], side: int, columns: int) -> Image.Image:
    """For every rule some pairs in a row: source, target, and under them the instruction in one of its wordings.

    Args:
        rows: rule -> at most `columns` examples, whose pictures are `side` pixels large.
        side: of the pictures.
        columns: that the sheet has room for.
    """
    cell, gap, text_height, left = 2 * side + 40, 16, 40, 130
    picture = Image.new("RGB", (left + columns * (cell + gap), 8 + len(rows) * (side + text_height + 8)), "white")
    pen = ImageDraw.Draw(picture)
    font = ImageFont.load_default(11)
    for row, (rule, examples) in enumerate(rows.items()):
        top = 8 + row * (side + text_height + 8)
        pen.text((6, top + side // 2), rule, fill="black", font=font)
        for column, (source, target, texts) in enumerate(examples):
            x = left + column * (cell + gap)
            picture.paste(source, (x, top))
            picture.paste(target, (x + side + 24, top))
            pen.text((x + side + 6, top + side // 2 - 8), ">", fill="black", font=font)
            text = texts[column % len(texts)]
            pen.multiline_text((x, top + side + 2), _wrapped(text, font, cell + 8), fill="black", font=font, spacing=1)
    return picture


def _wrapped(text: str, font, width: int) -> str:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) > width and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines[:3])
