"""The Frechet distance of two sets of pictures by their features; with those of InceptionV3 it is the FID.

Sources: M. Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", arXiv 1706.08500; for resizing, G. Parmar et al., "On Aliased
Resizing and Surprising Subtleties in GAN Evaluation", arXiv 2104.11222.

The value depends on how pictures are resized for the network, and on compression: JPEG references lower it by chance, and a bilinear
resizing that skips pixels changes it by whole points. Here each channel is resized in float32 by Pillow's bicubic filter, which averages
over all pixels, and not rounded, as clean-fid's default; files are read as they are. pytorch-fid, with which published values of MJHQ-30K
were measured, resizes bilinearly within the network. Of fewer than about 10,000 pictures the distance is too large.
"""

from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image

from dim_jax.datasets.similarity import VisionModel, torch_device
from dim_jax.errors import InputError, check, first_line, require_packages

SIDE = 299  # pixels, of InceptionV3
BATCH = 32
Features = Callable[[list[Image.Image]], Float[np.ndarray, "b d"]]


class Statistics:
    """Mean and covariance of features, collected batch by batch in float64.

    They are sums about the first batch's mean, so that nothing is lost where the mean is large beside the spread.
    """

    def __init__(self) -> None:
        self.count, self._origin, self._sum, self._products = 0, np.zeros(0), np.zeros(0), np.zeros((0, 0))

    def add(self, features: Float[np.ndarray, "b d"]) -> None:
        rows = np.asarray(features, np.float64)
        if not self.count:
            width = rows.shape[1]
            self._origin, self._sum, self._products = rows.mean(0), np.zeros(width), np.zeros((width, width))
        rows = rows - self._origin
        self.count += len(rows)
        self._sum += rows.sum(0)
        self._products += rows.T @ rows

    def mean(self) -> Float[np.ndarray, " d"]:
        return self._origin + self._sum / self.count

    def covariance(self) -> Float[np.ndarray, "d d"]:
        """With n - 1 in the denominator, as `numpy.cov`. Raises InputError if there are fewer than two rows."""
        check(self.count >= 2, f"A Frechet distance needs two pictures on either side at least; here are {self.count}.")
        return (self._products - np.outer(self._sum, self._sum) / self.count) / (self.count - 1)


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)), with A and B the covariances.

    The trace of the root is that of (A^(1/2) B A^(1/2))^(1/2), which is symmetric: so no root is complex, and none is of a singular matrix.

    Raises:
        InputError: as `Statistics.covariance`.
    """
    first, second, difference = a.covariance(), b.covariance(), a.mean() - b.mean()
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    overlap = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ second @ root), 0)).sum()
    return float(difference @ difference + np.trace(first) + np.trace(second) - 2 * overlap)


def collect_statistics(pictures: Iterable[Image.Image], features: Features) -> Statistics:
    """The statistics of pictures, of which a batch is in memory at once."""
    statistics = Statistics()
    remaining = iter(pictures)
    while batch := list(islice(remaining, BATCH)):
        statistics.add(features(batch))
    return statistics


def open_features(path: Path) -> tuple[Features, str]:
    """What reads features, and how it resizes, in words.

    `path` is a TorchScript file, such as NVIDIA's inception-2015-12-05.pt (the network of clean-fid, without its own resizing), or a folder
    of transformers with a vision model, whose pooled output then stands in for Inception's features.

    Raises:
        InputError: it is neither, or packages are missing.
    """
    if path.is_dir():
        model = VisionModel(path)
        return model.features, f"as the image processor of {path.name} does"
    require_packages("torch", extra="evaluate", feature="Reading features")
    import torch

    check(path.is_file(), f"{path}: no such file. Give a feature network: a TorchScript file, or a folder of transformers.")
    device = torch_device()
    try:
        network = torch.jit.load(str(path), map_location=device).eval()
    except RuntimeError as error:
        raise InputError(f"{path}: is not a TorchScript file ({first_line(error)}). Give one, or a folder of transformers.") from error
    # NVIDIA's wraps the layers in a resizing of its own.
    layers = getattr(network, "layers", None)

    def features(pictures: list[Image.Image]) -> Float[np.ndarray, "b d"]:
        pixels = torch.from_numpy(np.stack([resize_bicubic(picture) for picture in pictures])).permute(0, 3, 1, 2).to(device)
        with torch.no_grad():
            outputs = network(pixels) if layers is None else layers((pixels - 128) / 128)
        return outputs.reshape(len(pictures), -1).float().cpu().numpy()

    return features, f"bicubic, each channel in float32, to {SIDE} x {SIDE} pixels, not rounded (as clean-fid)"


def resize_bicubic(picture: Image.Image) -> Float[np.ndarray, "299 299 3"]:
    """RGB in [0, 255] as float32, each channel resized by Pillow's bicubic filter without rounding, as clean-fid does."""
    pixels = np.asarray(picture, np.float32)
    channels = [np.asarray(Image.fromarray(pixels[..., i]).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for i in range(3)]
    return np.stack(channels, -1).clip(0, 255)
