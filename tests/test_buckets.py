"""Buckets: constant area, whole latents, and the nearest one for a picture."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dim_jax.errors import InputError
from dim_jax.processing.buckets import aspect_buckets, nearest_bucket, sizes_by_ratio


@pytest.mark.parametrize("resolution", [256, 512, 1024, 2048])
def test_sizes_are_multiples_of_about_constant_area(resolution):
    buckets = aspect_buckets(resolution)
    assert len(set(buckets)) == len(buckets)
    assert (resolution, resolution) in buckets
    for height, width in buckets:
        assert height % 32 == width % 32 == 0
        assert 1 / 4 <= height / width <= 4
        assert abs(height * width / resolution**2 - 1) <= 16 / max(height, width) * 1.04
        assert (width, height) in buckets


def test_known_sizes():
    buckets = aspect_buckets(1024)
    assert len(buckets) == 33
    assert buckets[0] == (512, 2048)
    assert buckets[-1] == (2048, 512)
    assert aspect_buckets(32) == [(32, 32)]


def test_nearest_bucket():
    buckets = aspect_buckets(1024)
    assert nearest_bucket(500, 500, buckets) == (1024, 1024)
    height, width = nearest_bucket(4032, 3024, buckets)
    assert abs(width / height - 4 / 3) < 0.04
    assert nearest_bucket(10_000, 100, buckets) == (512, 2048)
    # A tie in aspect ratio goes to the larger one.
    assert nearest_bucket(64, 64, [(512, 512), (1024, 1024), (256, 256)]) == (1024, 1024)


@settings(derandomize=True, max_examples=30, deadline=None)
@given(st.integers(8, 5000), st.integers(8, 5000))
def test_a_picture_on_its_side_takes_the_bucket_on_its_side(width, height):
    buckets = aspect_buckets(512)
    assert nearest_bucket(height, width, buckets) == nearest_bucket(width, height, buckets)[::-1]


@pytest.mark.parametrize(("resolution", "size"), [(1024, (768, 1344)), (512, (384, 672)), (256, (192, 352)), (64, (64, 64))])
def test_an_aspect_ratio_has_a_published_size_or_ours(resolution, size):
    sizes = sizes_by_ratio(resolution)
    assert nearest_bucket(16, 9, sizes) == size
    assert nearest_bucket(1, 1, sizes) == (resolution, resolution)


def test_errors():
    with pytest.raises(InputError, match=r"1000 is not a multiple of 32. Take 992"):
        aspect_buckets(1000)
    with pytest.raises(InputError, match="at least 1"):
        aspect_buckets(512, max_ratio=0.5)
    with pytest.raises(InputError, match="no buckets"):
        nearest_bucket(4, 3, [])
