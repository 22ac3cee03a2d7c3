"""Random augmentation of examples. Source and target change alike, so the edit between them stays the same."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from PIL import Image, ImageOps

from dim_jax.data.example import Example
from dim_jax.processing.pictures import as_rgb, translate


@dataclass(frozen=True)
class Augment:
    """Augments examples at random.

    Attributes:
        shift: largest translation in pixels, to each side.
        mirrored: rules whose examples are mirrored, left to right, with probability 1/2; they must not name a side.
        recoloured: rules whose examples get other hues with probability 1/2 (greys and white stay); they must not name a colour.
    """

    shift: int = 0
    mirrored: Collection[str] = ()
    recoloured: Collection[str] = ()

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The example, changed or not; changed pictures are RGB.

        Raises:
            InputError: a picture cannot become RGB (`as_rgb`).
        """
        changes = []
        if self.shift:
            right, down = (int(offset) for offset in rng.integers(-self.shift, self.shift, 2, endpoint=True))
            changes.append(partial(translate, right=right, down=down))
        if example.rule in self.mirrored and rng.random() < 0.5:
            changes.append(ImageOps.mirror)
        if example.rule in self.recoloured and rng.random() < 0.5:
            changes.append(partial(hue_rotate, angle=rng.uniform(0, 2 * np.pi)))
        if not changes:
            return example
        source = None if example.source is None else _apply(example.source, changes)
        return replace(example, source=source, target=_apply(example.target, changes))


def _apply(image: Image.Image, changes: Iterable[Callable[[Image.Image], Image.Image]]) -> Image.Image:
    image = as_rgb(image)
    for change in changes:
        image = change(image)
    return image


def hue_rotate(image: Image.Image, angle: float) -> Image.Image:
    """The RGB picture with its colours rotated around the grey axis by an angle in radians, clipped to the RGB cube.

    Source: Rodrigues' rotation formula about (1, 1, 1) / sqrt(3).
    """
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    matrix = np.cos(angle) * np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) / 3
    return image.convert("RGB", matrix=np.pad(matrix, ((0, 0), (0, 1))).ravel().tolist())
