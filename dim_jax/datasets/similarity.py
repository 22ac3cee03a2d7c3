"""Features of pictures and texts by models of transformers, and their cosine similarity.

CLIP-I and DINO compare two pictures, CLIP-T a picture and a text: the metrics of DreamBooth (arXiv 2208.12242) and of MagicBrush (arXiv
2306.10012), which measures with CLIP ViT-B/32 and DINO ViT-S/16. Pictures are resized as the model's own image processor does.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from dim_jax.errors import InputError, first_line, require_packages
from dim_jax.storage.hub import cached_snapshot, check_hub_id


def cosine(a: Float[np.ndarray, "b d"], b: Float[np.ndarray, "b d"]) -> Float[np.ndarray, " b"]:
    """Row by row, in [-1, 1]."""
    return (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


def torch_device() -> str:
    """PyTorch's name of the device that networks run on."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


class VisionModel:
    """A vision transformer, such as DINO or DINOv2: a picture's feature is the class token of the last layer.

    `name` is a folder (as a Path, never looked for on the hub), or a hub id.

    Raises:
        InputError: PyTorch is missing, or the model cannot be read or lacks weights.
    """

    def __init__(self, name: str | Path):
        require_packages("torch", extra="evaluate", feature="A similarity by a model")
        from transformers import AutoImageProcessor, AutoModel

        self._name = name
        if not isinstance(name, Path) and not Path(name).exists() and cached_snapshot(name, "config.json") is None:
            check_hub_id(name)
        self._model = self._load_model(AutoModel)
        self._processor = self._load(AutoImageProcessor, backend="pil")

    def features(self, pictures: Sequence[Image.Image]) -> Float[np.ndarray, "b d"]:
        """Of RGB pictures, as float32."""
        import torch

        inputs = self._processor(images=list(pictures), return_tensors="pt").to(self._model.device)
        with torch.inference_mode():
            return self._image_features(inputs["pixel_values"]).float().cpu().numpy()

    def _image_features(self, pixels: Any) -> Any:
        return self._model(pixel_values=pixels).last_hidden_state[:, 0]

    def _load_model(self, kind: Any) -> Any:
        model, loading_info = self._load(kind, output_loading_info=True)
        # DINO's checkpoints have no pooler, and its output is not used.
        if missing := sorted(key for key in loading_info["missing_keys"] if not key.startswith("pooler.")):
            raise InputError(f"{self._name}: lacks weights of a {type(model).__name__}, such as {missing[0]}. Give another model.")
        return model.to(torch_device()).eval()

    def _load(self, kind: Any, **options: Any) -> Any:
        from transformers.utils import logging

        logging.disable_progress_bar()
        logging.set_verbosity_error()
        try:
            return kind.from_pretrained(self._name, local_files_only=isinstance(self._name, Path), **options)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise InputError(
                f"{self._name}: no {kind.__name__} can be read ({first_line(error)}). Give a folder or a hub id of transformers with a "
                "complete model."
            ) from error


class Clip(VisionModel):
    """A CLIP: features are the projected embeddings of pictures and texts. Arguments and errors as for `VisionModel`."""

    def _image_features(self, pixels: Any) -> Any:
        return self._model.get_image_features(pixel_values=pixels).pooler_output

    def texts(self, texts: Sequence[str]) -> Float[np.ndarray, "b d"]:
        """Features of texts, as float32; what is longer than the model reads is cut off, as OpenAI's code does."""
        import torch
        from transformers import AutoTokenizer

        tokenizer = self._load(AutoTokenizer)
        tokens = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").to(self._model.device)
        with torch.inference_mode():
            return self._model.get_text_features(**tokens).pooler_output.float().cpu().numpy()
