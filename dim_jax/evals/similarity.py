"""Cosine similarities of pictures, and of pictures and texts, by models of transformers that lie in a folder.

CLIP-I and DINO compare a result with its target, CLIP-T with a caption of the target (MagicBrush, arXiv 2306.10012, measures with CLIP
ViT-B/32 and DINO ViT-S/16). Pictures are resized as the model's own image processor does.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from dim_jax.errors import InputError, require_packages


def cosine(a: Float[np.ndarray, "b d"], b: Float[np.ndarray, "b d"]) -> Float[np.ndarray, " b"]:
    """Row by row, in [-1, 1]."""
    return (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


class VisionModel:
    """A vision model of transformers in a folder, such as the ViT of DINO or DINOv2: a picture's feature is the class token, normed.

    Raises:
        InputError: there is no such model in the folder, or packages are missing.
    """

    def __init__(self, folder: Path):
        require_packages("torch", extra="evaluate", feature="A similarity by a model")
        if not (folder / "config.json").is_file():
            raise InputError(f"{folder}: not a folder of transformers (it has no config.json). Give a model that lies on this machine.")
        self._folder = folder

    def features(self, pictures: Sequence[Image.Image]) -> Float[np.ndarray, "b d"]:
        """Of pictures, as float32."""
        import torch

        with torch.no_grad():
            return self._of(self._pixels(pictures))

    def _of(self, pixels: Any) -> Float[np.ndarray, "b d"]:
        return self._model(pixel_values=pixels).last_hidden_state[:, 0].float().cpu().numpy()

    def _pixels(self, pictures: Sequence[Image.Image]) -> Any:
        return self._processor(images=list(pictures), return_tensors="pt")["pixel_values"].to(self._model.device)

    @cached_property
    def _model(self) -> Any:
        from transformers import AutoModel

        return _on_device(_loaded(AutoModel, self._folder))

    @cached_property
    def _processor(self) -> Any:
        from transformers import AutoImageProcessor

        return _loaded(AutoImageProcessor, self._folder)


class Clip(VisionModel):
    """A CLIP of transformers in a folder, with its tokenizer. Errors as `VisionModel`."""

    def _of(self, pixels: Any) -> Float[np.ndarray, "b d"]:
        return _projected(self._model.get_image_features(pixel_values=pixels))

    def texts(self, texts: Sequence[str]) -> Float[np.ndarray, "b d"]:
        """Features of texts, as float32; what is longer than the model reads is cut off, as OpenAI's code does."""
        import torch

        tokens = self._tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").to(self._model.device)
        with torch.no_grad():
            return _projected(self._model.get_text_features(**tokens))

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return _loaded(AutoTokenizer, self._folder)


def _projected(found: Any) -> Float[np.ndarray, "b d"]:
    """Features as an array; since version 5 transformers gives them as the pooled output."""
    return getattr(found, "pooler_output", found).float().cpu().numpy()


def _loaded(kind: Any, folder: Path) -> Any:
    try:
        return kind.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{folder}: transformers cannot load it ({reason}). Give a folder with a whole model.") from error


def _on_device(model: Any) -> Any:
    import torch

    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
