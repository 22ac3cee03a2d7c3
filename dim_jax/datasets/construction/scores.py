"""Similarity of the two pictures of an edit: structure (SSIM), DINO features, CLIP features."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image

from dim_jax.errors import InputError, require_packages

Pair = tuple[Image.Image, Image.Image]


class Scores(NamedTuple):
    """Each at most 1; equal pictures have 1."""

    ssim: float
    dino: float
    clip: float


def ssim(pair: Pair, side: int) -> float:
    """Mean structural similarity of two RGB pictures, in gray, both squashed to `side` x `side` pixels.

    Source: Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", 2004, as scikit-image computes it
    with the paper's Gaussian window.
    """
    from skimage.metrics import structural_similarity

    gray = [np.asarray(picture.convert("L").resize((side, side), Image.Resampling.BILINEAR)) for picture in pair]
    mean: Any = structural_similarity(*gray, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    return float(mean)


class Similarity:
    """Cosines of DINO's class tokens and of CLIP's picture embeddings, by the models' own preprocessing.

    Source: the picture-to-picture metrics of DreamBooth (arXiv 2208.12242), DINO and CLIP-I, which editing benchmarks use.
    """

    def __init__(self, dino: str, clip: str):
        """`dino` and `clip` are folders or hub ids of transformers.

        Raises:
            InputError: a package is missing, or a model cannot be read or is of another kind.
        """
        require_packages("torch", "transformers", extra="construction", feature="Similarity by DINO and CLIP")
        import torch
        from transformers import AutoModel, CLIPVisionModelWithProjection

        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._dino = self._open(dino, AutoModel)
        self._clip = self._open(clip, CLIPVisionModelWithProjection)

    def __call__(self, pairs: Sequence[Pair]) -> list[tuple[float, float]]:
        """Of each pair of RGB pictures its two cosines, DINO's and CLIP's."""
        pictures = [picture for pair in pairs for picture in pair]
        dino = self._features(self._dino, pictures, lambda outputs: outputs.last_hidden_state[:, 0])
        clip = self._features(self._clip, pictures, lambda outputs: outputs.image_embeds)
        first, second = slice(0, None, 2), slice(1, None, 2)
        cosines = [(features[first] * features[second]).sum(1) for features in (dino, clip)]
        return [(float(a), float(b)) for a, b in zip(*cosines, strict=True)]

    def _open(self, name: str, kind: Any) -> tuple[Any, Any]:
        from transformers import AutoImageProcessor
        from transformers.utils import logging

        # A whole CLIP has a text tower that is not read; what must be there is checked below.
        logging.disable_progress_bar()
        logging.set_verbosity_error()
        try:
            processor = AutoImageProcessor.from_pretrained(name, backend="pil")
            model, loading_info = kind.from_pretrained(name, output_loading_info=True)
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"{name}: no {kind.__name__} can be read ({reason}). Give a folder or a hub id of transformers.") from error
        # DINO's checkpoints have no pooler, and its output is not used.
        if missing := sorted(key for key in loading_info["missing_keys"] if not key.startswith("pooler.")):
            raise InputError(f"{name}: lacks weights of a {kind.__name__}, such as {missing[0]}. Give another model.")
        return processor, model.to(self._device).eval()

    def _features(self, opened: tuple[Any, Any], pictures: list[Image.Image], select: Any) -> Float[np.ndarray, "pictures d"]:
        import torch

        processor, model = opened
        with torch.inference_mode():
            inputs = processor(pictures, return_tensors="pt").to(self._device)
            features = select(model(**inputs)).float()
            return torch.nn.functional.normalize(features, dim=-1).cpu().numpy()
