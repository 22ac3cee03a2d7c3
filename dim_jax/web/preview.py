"""A glimpse of a painting from its latents alone: one product with a small matrix, where the autoencoder takes as long as some steps do."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image

from dim_jax.sampling import Sampler


class LatentPreview(NamedTuple):
    """The linear map from the latents of a cell, and 1, to the mean colour of its pixels, in [0, 255]."""

    weights: Float[np.ndarray, "c+1 3"]

    @classmethod
    def fit(cls, sampler: Sampler, pictures: Sequence[Image.Image]) -> "LatentPreview":
        """By least squares, on what the autoencoder makes of pictures at the sampler's resolution and of their mirror images."""
        size = (sampler.settings.resolution, sampler.settings.resolution)
        latents, colours = list[np.ndarray](), list[np.ndarray]()
        for picture in (turned for one in pictures for turned in (one, one.transpose(Image.Transpose.FLIP_LEFT_RIGHT))):
            encoded = np.asarray(sampler.encode([picture], size), np.float32)
            (decoded,) = sampler.decode(encoded)
            latents.append(encoded[0].reshape(-1, encoded.shape[-1]))
            colours.append(_means(decoded, encoded.shape[1:3]).reshape(-1, 3))
        return cls(np.linalg.lstsq(_with_one(np.concatenate(latents)), np.concatenate(colours))[0].astype(np.float32))

    def __call__(self, latents: Float[np.ndarray, "h w c"]) -> Image.Image:
        """A picture with a pixel for each cell."""
        return Image.fromarray(np.clip(_with_one(latents.astype(np.float32)) @ self.weights, 0, 255).astype(np.uint8))


def _with_one(latents: Float[np.ndarray, "*cells c"]) -> Float[np.ndarray, "*cells c+1"]:
    return np.concatenate([latents, np.ones_like(latents[..., :1])], -1)


def _means(picture: Image.Image, cells: tuple[int, int]) -> Float[np.ndarray, "h w 3"]:
    """The mean colour of each cell."""
    rows, columns = cells
    pixels = np.asarray(picture, np.float32)
    return pixels.reshape(rows, pixels.shape[0] // rows, columns, pixels.shape[1] // columns, 3).mean((1, 3))
