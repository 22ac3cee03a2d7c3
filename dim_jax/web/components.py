"""Gradio's components as this page needs them. They give handlers bytes and pictures, and never a path."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import gradio as gr
import numpy as np
from gradio import component_meta
from gradio.components.base import server
from gradio.components.image_editor import AcceptBlobs, EditorData
from jaxtyping import Bool
from PIL import Image

from dim_jax.errors import check
from dim_jax.processing.pictures import read_alpha, read_header

SIDE = 512  # of the longer side of a picture that a mask is drawn on
MARK = ("#4f46e5", 0.55)  # the brush: colour and opacity
BLOBS = 64  # the most drawings that wait for their request


# Else Gradio writes a stub file beside this module, into the installed package.
with patch.object(component_meta, "create_or_modify_pyi"):

    class MaskEditor(gr.ImageEditor):
        """A picture to draw on. Handlers get the files of what was drawn, for `read_mask`: the picture below is known here."""

        is_template = True  # its looks are its parent's; so is the constructor, from which Gradio reads the options of the browser's side

        def preprocess(self, payload: EditorData | None) -> list[bytes]:
            """The layers of what a browser sends."""
            if payload is None:
                return []
            if payload.id is None:  # files that this browser has uploaded, as the gate has seen to
                return [Path(layer.path).read_bytes() for layer in payload.layers]
            blobs = self.blob_storage.pop(payload.id, None)
            return [layer for layer in blobs.layers if layer] if blobs else []

        def postprocess(self, value: Image.Image | None) -> EditorData | None:
            """A picture to draw on, scaled to a size that suits the brush."""
            if value is None:
                return None
            scale = SIDE / max(value.size)
            size = max(1, round(value.width * scale)), max(1, round(value.height * scale))
            return super().postprocess({"background": value.resize(size, Image.Resampling.BICUBIC), "layers": [], "composite": None})

        @server
        def accept_blobs(self, data: AcceptBlobs) -> None:
            """What was drawn, a moment before the request that speaks of it."""
            if data.data["type"] == "layer":
                super().accept_blobs(data)
            while len(self.blob_storage) > BLOBS:
                self.blob_storage.pop(next(iter(self.blob_storage)))


def mask_editor(**options: Any) -> MaskEditor:
    """One with a brush of one colour, and nothing else."""
    brush = gr.Brush(default_size=36, colors=[MARK], default_color=MARK, color_mode="fixed")
    return MaskEditor(
        type="pil", format="png", sources=(), transforms=(), layers=False, buttons=[], canvas_size=(SIDE, SIDE), brush=brush,
        interactive=True, **options,
    )  # fmt: skip


def read_mask(layers: Sequence[bytes]) -> Image.Image | None:
    """What was drawn as a grey picture: 255 under the brush, 0 elsewhere; None: nothing was.

    Raises:
        InputError: a layer is no picture of a drawing.
    """
    drawn = list[Bool[np.ndarray, "h w"]]()
    for layer in layers:
        width, height = read_header(BytesIO(layer), "The mask").size
        check(max(width, height) <= 2 * SIDE, f"The mask is {width} x {height} pixels, more than the page draws. Draw it again.")
        drawn.append(read_alpha(BytesIO(layer), "The mask") > 0)
    check(len({one.shape for one in drawn}) < 2, "The mask has layers of several sizes. Draw it again.")
    return Image.fromarray(np.logical_or.reduce(drawn).astype(np.uint8) * 255) if np.any([one.any() for one in drawn]) else None
