"""Random changes of an example's pictures, both alike, so that small data last longer: the edit between them stays what it is."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from PIL import Image, ImageOps

from dim_jax.data.example import Example
from dim_jax.data.pictures import as_rgb, translate


@dataclass(frozen=True)
class Augment:
    """Changes examples at random.

    Attributes:
        shift: pixels by which pictures are moved at most, to each side.
        mirrored: rules of which every second example is mirrored, left to right: rules that name no side.
        recoloured: rules of which every second example has its hues turned, greys and white as they are: rules that name no colour.
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
            right, down = (int(way) for way in rng.integers(-self.shift, self.shift, 2, endpoint=True))
            changes.append(partial(translate, right=right, down=down))
        if example.rule in self.mirrored and rng.random() < 0.5:
            changes.append(ImageOps.mirror)
        if example.rule in self.recoloured and rng.random() < 0.5:
            changes.append(partial(hue_rotate, angle=rng.uniform(0, 2 * np.pi)))
        if not changes:
            return example
        source = None if example.source is None else _changed(example.source, changes)
        return replace(example, source=source, target=_changed(example.target, changes))


def _changed(image: Image.Image, changes: Iterable[Callable[[Image.Image], Image.Image]]) -> Image.Image:
    image = as_rgb(image)
    for change in changes:
        image = change(image)
    return image


def hue_rotate(image: Image.Image, angle: float) -> Image.Image:
    """The RGB picture with its colours turned around the axis of greys, by an angle in radians; what leaves the cube is clipped.

    Source: Rodrigues' rotation formula about (1, 1, 1) / sqrt(3).
    """
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    matrix = np.cos(angle) * np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) / 3
    return image.convert("RGB", matrix=np.pad(matrix, ((0, 0), (0, 1))).ravel().tolist())
