"""Shapes of batches. Mixed aspect ratios use a small set of sizes of about constant area, so that each compiles once."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from dim_jax.errors import check

# (height, width) of the sizes that SANA and PixArt were trained on at 1024 pixels; those of 512 are half of them, to the pixel. Source: the
# tables ASPECT_RATIO_1024_BIN and ASPECT_RATIO_512_BIN of diffusers.
PUBLISHED_1024 = (
    (512, 2048), (512, 1856), (576, 1792), (576, 1728), (576, 1664), (640, 1600), (640, 1536), (704, 1472), (704, 1408), (704, 1344),
    (768, 1344), (768, 1280), (832, 1216), (832, 1152), (896, 1152), (896, 1088), (960, 1088), (960, 1024), (1024, 1024), (1024, 960),
    (1088, 960), (1088, 896), (1152, 896), (1152, 832), (1216, 832), (1280, 768), (1344, 768), (1408, 704), (1472, 704), (1536, 640),
    (1600, 640), (1728, 576), (2048, 512),
)  # fmt: skip
PUBLISHED = {1024: PUBLISHED_1024, 512: tuple((height // 2, width // 2) for height, width in PUBLISHED_1024)}


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


def sizes_by_ratio(resolution: int, multiple: int = 32) -> Sequence[tuple[int, int]]:
    """The sizes (height, width) for a picture of a chosen aspect ratio: the published ones of 512 and 1024 pixels where they are
    multiples of `multiple`, else `aspect_buckets`, which raises."""
    published = PUBLISHED.get(resolution, ())
    return published if published and 32 % multiple == 0 else aspect_buckets(resolution, multiple)


def nearest_bucket(width: int, height: int, buckets: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The bucket (height, width) whose aspect ratio is nearest to the picture's, measured by the log of the ratio, so that a
    picture on its side gets the bucket on its side. Ties go to the larger area. From PIL: `nearest_bucket(*image.size, buckets)`.

    Raises:
        InputError: there are no buckets.
    """
    check(buckets, "There are no buckets to choose from. Give at least one (height, width).")
    log_ratio = math.log(height / width)
    return min(buckets, key=lambda size: (abs(math.log(size[0] / size[1]) - log_ratio), -size[0] * size[1]))
