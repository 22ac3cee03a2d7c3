"""LPIPS, a distance of pictures by features of AlexNet: R. Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual
Metric", arXiv 1801.03924, version 0.1 of its weights.

The package torchmetrics brings the learned weights of the features. The network is a file, torchvision's alexnet-owt-7be5be79.pth;
torchvision itself is not needed, which loads beside few builds of torch.
"""

import pickle
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from dim_jax.datasets.similarity import torch_device
from dim_jax.errors import InputError, first_line, require_packages

SMALLEST = 31  # pixels a side, which the last layer needs
# Convolutions of torchvision's AlexNet by their number in `features`: stride, padding, and whether a maximum over 3 x 3 pixels in steps of
# 2 comes before.
CONVOLUTIONS = {0: (4, 2, False), 3: (1, 2, True), 6: (1, 1, True), 8: (1, 1, False), 10: (1, 1, False)}
CHANNELS = (64, 192, 384, 256, 256)
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of ImageNet's colours, for samples in [-1, 1]
EPS = 1e-8


class Lpips:
    """The distance by the AlexNet in a file. Raises InputError if there is no such network in the file, or packages are missing."""

    def __init__(self, path: Path):
        require_packages("torch", "torchmetrics", extra="evaluate", feature="LPIPS")
        package = find_spec("torchmetrics")
        assert package is not None
        assert package.origin is not None
        state = _load(path)
        learned = _load(Path(package.origin).parent / "functional/image/lpips_models/alex.pth")
        self._device = torch_device()
        try:
            self._convolutions = [(state[f"features.{n}.weight"], state[f"features.{n}.bias"]) for n in CONVOLUTIONS]
        except KeyError as error:
            raise InputError(f"{path}: has no {error.args[0]}. Give AlexNet as torchvision has it, alexnet-owt-7be5be79.pth.") from error
        if (channels := tuple(len(bias) for _, bias in self._convolutions)) != CHANNELS:
            raise InputError(f"{path}: has layers of {channels} channels, where AlexNet's have {CHANNELS}. Give alexnet-owt-7be5be79.pth.")
        self._weights = [learned[f"lin{i}.model.1.weight"].to(self._device) for i in range(len(CHANNELS))]
        self._convolutions = [(kernel.to(self._device), bias.to(self._device)) for kernel, bias in self._convolutions]

    def distance(self, a: Float[np.ndarray, "h w 3"], b: Float[np.ndarray, "h w 3"]) -> float:
        """Of two RGB pictures in [0, 1]: 0 for equal ones, and less for those that look more alike.

        sum over layers of mean over positions of w . (f_a - f_b)^2, with features f of unit length at each position.

        Raises:
            InputError: a side has fewer than `SMALLEST` pixels.
        """
        import torch

        if min(a.shape[:2]) < SMALLEST:
            raise InputError(f"LPIPS needs {SMALLEST} pixels a side, and here are {a.shape[0]} x {a.shape[1]}. Leave --lpips out.")
        with torch.no_grad():
            layers = self._features(torch.from_numpy(np.stack([a, b]).astype(np.float32)).permute(0, 3, 1, 2).to(self._device))
            parts = [
                ((first - second).square() * weight[0]).sum(0).mean() for weight, (first, second) in zip(self._weights, layers, strict=True)
            ]
            return float(torch.stack(parts).sum())

    def _features(self, pixels: Any) -> Any:
        """The features of each convolution, of unit length at every position."""
        import torch
        from torch.nn import functional

        shift, scale = (torch.tensor(values, device=pixels.device).reshape(3, 1, 1) for values in (SHIFT, SCALE))
        x = (2 * pixels - 1 - shift) / scale
        for (kernel, bias), (stride, padding, pooled) in zip(self._convolutions, CONVOLUTIONS.values(), strict=True):
            if pooled:
                x = functional.max_pool2d(x, 3, 2)
            x = functional.conv2d(x, kernel, bias, stride, padding).relu()
            yield x / (x.square().sum(1, keepdim=True) + EPS).sqrt()


def _load(path: Path) -> Any:
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = first_line(error)
        raise InputError(f"{path}: cannot be read as weights of PyTorch ({reason}). Give alexnet-owt-7be5be79.pth.") from error
