"""Shapes of batches. Mixed aspect ratios use a small set of sizes of about constant area, so that each compiles once."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from dim_jax.errors import check


class Bucket(NamedTuple):
    """The shape of a batch: the size of its pictures in pixels, and the number of tokens of its turns."""

    height: int
    width: int
    tokens: int


def aspect_buckets(resolution: int, multiple: int = 32, max_ratio: float = 4.0) -> list[tuple[int, int]]:
    """Sizes (height, width) in pixels of about resolution^2 pixels, from `max_ratio` times as wide as high to the reverse.

    Both sides are multiples of `multiple` (32: one latent pixel of the autoencoder). Our rule: every multiple is the shorter side
    of one size, whose longer side is the multiple nearest to resolution^2 / shorter; each size is also used on its side. So the area
    differs from resolution^2 by less than half of multiple / longer side. Sorted from the widest to the highest.

    Raises:
        InputError: `resolution` is not a multiple of `multiple`, or `max_ratio` is under 1.
    """
    check(
        resolution >= multiple and resolution % multiple == 0,
        f"Resolution {resolution} is not a multiple of {multiple}. Take {max(1, round(resolution / multiple)) * multiple}.",
    )
    check(max_ratio >= 1, f"The largest aspect ratio is {max_ratio}, but must be at least 1 (longer over shorter side).")
    sizes = set()
    for shorter in range(multiple, resolution + 1, multiple):
        longer = round(resolution**2 / (shorter * multiple)) * multiple
        if longer <= max_ratio * shorter:
            sizes |= {(shorter, longer), (longer, shorter)}
    return sorted(sizes, key=lambda size: size[0] / size[1])


def nearest_bucket(width: int, height: int, buckets: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The bucket (height, width) whose aspect ratio is nearest to the picture's, measured by the log of the ratio, so that a
    picture on its side gets the bucket on its side. Ties go to the larger area. From PIL: `nearest_bucket(*image.size, buckets)`.

    Raises:
        InputError: there are no buckets.
    """
    check(buckets, "There are no buckets to choose from. Give at least one (height, width).")
    log_ratio = math.log(height / width)
    return min(buckets, key=lambda size: (abs(math.log(size[0] / size[1]) - log_ratio), -size[0] * size[1]))
