"""Similarity of the two pictures of an edit: structure (SSIM), DINO features, CLIP features."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dim_jax.datasets.similarity import Clip, VisionModel, cosine

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
    """Cosines of DINO's class tokens and of CLIP's picture embeddings; `dino` and `clip` are folders or hub ids of transformers.

    Raises:
        InputError: as `VisionModel`.
    """

    def __init__(self, dino: str, clip: str):
        self._models = VisionModel(dino), Clip(clip)

    def __call__(self, pairs: Sequence[Pair]) -> list[tuple[float, float]]:
        """Of each pair of RGB pictures its two cosines, DINO's and CLIP's."""
        pictures = [picture for pair in pairs for picture in pair]
        features = [model.features(pictures) for model in self._models]
        cosines = [cosine(rows[::2], rows[1::2]).tolist() for rows in features]
        return list(zip(*cosines, strict=True))
