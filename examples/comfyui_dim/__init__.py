"""ComfyUI nodes over the image API of `dim serve`: DIM Edit (with a mask, if there is one) and DIM Generate.

Copy this folder to ComfyUI/custom_nodes/, and start `dim serve`. It needs no package that ComfyUI lacks. A token for the server is read
from the environment variable DIM_SERVE_TOKEN: a workflow is saved with its pictures, and no place for a secret.
"""

import base64
import io
import json
import os
import time
import urllib.error
import urllib.request
import uuid

import numpy as np
import torch
from PIL import Image

SERVER = "http://127.0.0.1:8000"
TRIES = 10  # at a server that is busy (429)
AS_THE_SERVER = -1  # a number that is left to the server
SAMPLING = {
    "seed": ("INT", {"default": 0, "min": 0, "max": 2**31 - 1}),
    "count": ("INT", {"default": 1, "min": 1, "max": 4}),
    "steps": ("INT", {"default": AS_THE_SERVER, "min": AS_THE_SERVER, "max": 100}),
    "guidance": ("FLOAT", {"default": AS_THE_SERVER, "min": AS_THE_SERVER, "max": 30.0, "step": 0.5}),
    "server": ("STRING", {"default": SERVER}),
}


class DimEdit:
    """Edits each picture of a batch as the prompt says. Where a mask is 0, pixels stay as they are."""

    CATEGORY, FUNCTION, RETURN_TYPES = "image/dim_jax", "edit", ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802, as ComfyUI calls it
        required = {"image": ("IMAGE",), "prompt": ("STRING", {"multiline": True}), **SAMPLING}
        return {"required": required, "optional": {"mask": ("MASK",)}}

    def edit(self, image, prompt, seed, count, steps, guidance, server, mask=None):
        """A batch of `count` pictures for each picture of the batch `image` (b, h, w, 3 in [0, 1]); `mask` is (b or 1, h, w)."""
        results = []
        for number, pixels in enumerate(image):
            files = {"image": _png(pixels)}
            if mask is not None:
                shown = mask.reshape(-1, *mask.shape[-2:])
                alpha = 1 - shown[number % len(shown)]
                files["mask"] = _png(torch.cat([pixels[..., :3], alpha[..., None]], -1))
            results += _post(f"{server}/v1/images/edits", _fields(prompt, seed, count, steps, guidance), files)
        return (torch.stack(results),)


class DimGenerate:
    """Paints pictures from a prompt."""

    CATEGORY, FUNCTION, RETURN_TYPES = "image/dim_jax", "generate", ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802, as ComfyUI calls it
        sides = {"default": 0, "min": 0, "max": 4096, "step": 32}
        sizes = {"width": ("INT", sides), "height": ("INT", sides)}
        return {"required": {"prompt": ("STRING", {"multiline": True}), **sizes, **SAMPLING}}

    def generate(self, prompt, width, height, seed, count, steps, guidance, server):
        """A batch of `count` pictures; a width or height of 0 leaves the size to the server."""
        fields = _fields(prompt, seed, count, steps, guidance)
        if width and height:
            fields["size"] = f"{width}x{height}"
        return (torch.stack(_post(f"{server}/v1/images/generations", fields)),)


NODE_CLASS_MAPPINGS = {"DimEdit": DimEdit, "DimGenerate": DimGenerate}
NODE_DISPLAY_NAME_MAPPINGS = {"DimEdit": "DIM Edit", "DimGenerate": "DIM Generate"}


def _fields(prompt, seed, count, steps, guidance):
    fields = {"prompt": prompt, "seed": seed, "n": count}
    return fields | {name: value for name, value in (("steps", steps), ("guidance", guidance)) if value != AS_THE_SERVER}


def _png(pixels):
    """Of (h, w, 3 or 4) in [0, 1]."""
    file = io.BytesIO()
    Image.fromarray((pixels.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()).save(file, "PNG")
    return file.getvalue()


def _post(url, fields, files=None):
    """The pictures of the answer, each (h, w, 3) in [0, 1]; RuntimeError with what the server says if there are none."""
    if files is None:
        body, kind = json.dumps(fields).encode(), "application/json"
    else:
        mark = uuid.uuid4().hex
        head = '--{}\r\nContent-Disposition: form-data; name="{}"'
        parts = [f"{head.format(mark, name)}\r\n\r\n{value}\r\n".encode() for name, value in fields.items()]
        for name, data in files.items():
            parts.append(f'{head.format(mark, name)}; filename="{name}.png"\r\nContent-Type: image/png\r\n\r\n'.encode() + data + b"\r\n")
        body, kind = b"".join([*parts, f"--{mark}--\r\n".encode()]), f"multipart/form-data; boundary={mark}"
    headers = {"Content-Type": kind}
    if token := os.environ.get("DIM_SERVE_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    for tries in range(1, TRIES + 1):
        try:
            with urllib.request.urlopen(urllib.request.Request(url, body, headers)) as answer:
                items = json.loads(answer.read())["data"]
            break
        except urllib.error.HTTPError as error:
            with error:
                said = error.read().decode(errors="replace")
            if error.code == 429 and tries < TRIES:
                time.sleep(float(error.headers.get("Retry-After", 1)))
                continue
            raise RuntimeError(f"{url}: {error.code}: {_message(said)}") from error
        except urllib.error.URLError as error:
            raise RuntimeError(f"{url}: no answer ({error.reason}). Start `dim serve`, or correct the address.") from error
    images = [Image.open(io.BytesIO(base64.b64decode(item["b64_json"]))).convert("RGB") for item in items]
    return [torch.from_numpy(np.asarray(image, np.float32) / 255) for image in images]


def _message(said):
    try:
        return json.loads(said)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return said[:200]
