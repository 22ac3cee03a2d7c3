"""What the page shows as HTML and as files: progress, errors, results."""

import base64
import secrets
from html import escape
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from dim_jax.edit_result import EditResult, save_picture
from dim_jax.web.studio import BY_HAND, NOBODY, Progress

THUMBNAIL = 192  # pixels


class Files(NamedTuple):
    """Where a result lies for the browser, and the picture before it, of the same size."""

    result: str
    before: str | None


def save(result: EditResult, folder: Path, name: str) -> Files:
    """Write a result as PNG, with all that made it in its text chunks, and its source, to names of `folder` that nobody guesses."""
    folder = folder / secrets.token_hex(16)
    folder.mkdir()
    result.save(folder / f"{name}.png")
    if result.source is None:
        return Files(str(folder / f"{name}.png"), None)
    save_picture(result.source, folder / "before.png")
    return Files(str(folder / f"{name}.png"), str(folder / "before.png"))


def thumbnail(picture: Image.Image) -> Image.Image:
    """A picture for a list of rounds."""
    small = picture.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return small


def progress(now: Progress) -> str:
    """A bar, what happens, and what the painting heads for."""
    picture = ""
    if now.preview is not None:
        file = BytesIO()
        now.preview.save(file, "PNG")
        data = base64.b64encode(file.getvalue()).decode()
        picture = f'<img class="dim-preview" alt="a preview of the painting" src="data:image/png;base64,{data}">'
    bar = f'<div class="dim-bar" role="progressbar" aria-label="steps" aria-valuenow="{100 * now.share:.0f}">'
    bar += f'<i style="width: {now.share:.1%}"></i></div>'
    return f'<div class="dim-status">{picture}{bar}<span role="status">{escape(now.text)}</span></div>'


def message(text: str, kind: str = "note") -> str:
    """A line of text; `kind` "error" is read out at once."""
    role = "alert" if kind == "error" else "status"
    return f'<div class="dim-{kind}" role="{role}">{escape(text)}</div>' if text else ""


def facts(result: EditResult, title: str) -> str:
    """What made a result: who, with which settings, and the text that was painted."""
    chosen = result.settings
    parts = [f"{result.image.width} x {result.image.height} pixels", f"seed {result.seed}", f"{chosen['num_steps']} steps"]
    parts.append(f"guidance {chosen['guidance_scale']:g}")
    if result.source is not None and chosen["image_guidance_scale"] != 1:
        parts.append(f"image guidance {chosen['image_guidance_scale']:g}")
    if result.changed is not None:
        parts.append(f"{result.changed:.0%} changed")
    blueprint = ""
    if result.designer != NOBODY:
        parts.append(f"blueprint {result.designer if result.designer == BY_HAND else f'by {result.designer}'}")
        blueprint = f"<details><summary>Blueprint</summary><pre>{escape(result.prompt)}</pre></details>"
    heading = escape(result.instruction or result.prompt)
    return f'<div class="dim-facts"><b>{escape(title)}</b> {heading}<p>{escape(", ".join(parts))}</p>{blueprint}</div>'
