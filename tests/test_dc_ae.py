import json
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from dim_jax.errors import InputError
from dim_jax.models import module
from dim_jax.models.dc_ae import DCAE, average_channels, average_squares, pixel_shuffle, pixel_unshuffle, repeat_channels, upsampled_conv
from dim_jax.models.dc_ae_config import RES_BLOCK, DCAEConfig, Stage
from dim_jax.models.dc_ae_tiling import Tiling, apply_tiled, tile_starts
from dim_jax.weights import dc_ae, table
from tests.parity.dc_ae_goldens import load

WHOLE = Tiling(min_pixels=10**9)


def abstract(config: DCAEConfig) -> DCAE:
    return nnx.eval_shape(lambda: DCAE(config, rngs=nnx.Rngs(0)))


def smooth_picture(height: int, width: int) -> jnp.ndarray:
    """A sum of random waves, a few across the picture, in [-1, 1]."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width] / max(height, width)
    picture = np.zeros((1, height, width, 3))
    for _ in range(12):
        (fy, fx), phase = rng.uniform(-4, 4, 2), rng.uniform(0, 2 * np.pi)
        picture += rng.normal(size=(1, 1, 1, 3)) * np.cos(2 * np.pi * (fy * y + fx * x) + phase)[..., None]
    return jnp.asarray(picture / np.abs(picture).max(), jnp.float32)


# Sizes


def test_published_size_counts_312_million_parameters():
    shapes = module.shapes(abstract(DCAEConfig.f32c32()))
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 312_250_275
    assert len(table.tensor_mappings(dc_ae.ROWS, shapes)) == len(shapes) + 2 * 18, (
        "q, k and v of 18 attention blocks are one tensor of ours"
    )


@pytest.mark.parametrize(("height", "width"), [(1024, 1024), (768, 1344), (4096, 3072)])
def test_published_size_has_the_published_shapes(height, width):
    """32 pixels and 32 channels a cell; the last size is tiled."""
    model = abstract(DCAEConfig.f32c32())
    latents = jax.eval_shape(DCAE.encode, model, jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32))
    assert (latents.shape, latents.dtype) == ((2, height // 32, width // 32, 32), jnp.float32)
    pixels = jax.eval_shape(DCAE.decode, model, latents)
    assert (pixels.shape, pixels.dtype) == ((2, height, width, 3), jnp.float32)


def test_parameters_are_float32_whatever_the_compute_dtype():
    model = nnx.eval_shape(lambda: DCAE(DCAEConfig.tiny(), dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    assert {value.dtype for value in module.parameters(model).values()} == {jnp.dtype("float32")}


# config.json


def test_config_of_the_goldens_is_the_tiny_one(goldens):
    assert DCAEConfig.from_hf(goldens / "dc_ae.config.json") == DCAEConfig.tiny()


@pytest.mark.parametrize("config", [DCAEConfig.tiny(), DCAEConfig.f32c32()])
def test_config_survives_json(config):
    assert DCAEConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config


def test_keys_that_an_old_config_lacks_have_the_defaults_of_diffusers():
    published = {key: value for key, value in DCAEConfig.f32c32().to_hf().items() if "shortcut" not in key and "conv_act" not in key}
    del published["attention_head_dim"], published["encoder_qkv_multiscales"], published["encoder_block_out_channels"]
    assert DCAEConfig.from_hf(published) == DCAEConfig.f32c32()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("in_channels", 4),
        ("downsample_block_type", "pixel_unshuffle"),
        ("upsample_block_type", "bilinear"),
        ("decoder_norm_types", ["batch_norm", "rms_norm", "rms_norm", "rms_norm"]),
        ("decoder_act_fns", "relu"),
        ("decoder_conv_act_fn", "gelu"),
        ("encoder_out_shortcut", False),
        ("decoder_in_shortcut", False),
        ("encoder_block_types", "ViT"),
        ("encoder_block_types", [RES_BLOCK]),
        ("encoder_block_out_channels", []),
        ("decoder_block_out_channels", [0, 0, 0, 0]),
        ("encoder_block_out_channels", [16, 32, 32, 60]),
        ("encoder_block_out_channels", [16, 24, 32, 64]),
        ("decoder_block_out_channels", "wide"),
        ("encoder_layers_per_block", [0, 1, 1, 1]),
        ("decoder_layers_per_block", [0, 1, 0, 1]),
        ("decoder_layers_per_block", [1, 1, 1]),
        ("decoder_qkv_multiscales", [[], [], [4], [4]]),
        ("latent_channels", "8"),
        ("latent_channels", 0),
        ("decoder_qkv_multiscales", [[], [], 5, 5]),
        ("attention_head_dim", -1),
        ("scaling_factor", 0.0),
        ("scaling_factor", "large"),
        ("temporal", True),
    ],
)
def test_an_unsupported_config_names_its_key(key, value):
    with pytest.raises(InputError, match=key):
        DCAEConfig.from_hf(DCAEConfig.tiny().to_hf() | {key: value})


def test_sides_of_unlike_depth_are_refused():
    tiny = DCAEConfig.tiny()
    with pytest.raises(InputError, match="decoder_block_out_channels"):
        DCAEConfig(tiny.encoder, tiny.decoder[1:], latent_channels=8, attention_head_dim=16)


@pytest.mark.parametrize(
    ("content", "rule"), [(None, "cannot be read"), ("", "not a JSON file"), ("{", "not a JSON file"), ("[]", "not a JSON object")]
)
def test_a_broken_config_file_is_named(tmp_path, content, rule):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=rule) as error:
        DCAEConfig.from_hf(path)
    assert str(path) in str(error.value)


# Parts


def test_space_and_channels_in_pytorch_order():
    x = jnp.arange(2 * 4 * 4 * 3.0).reshape(2, 4, 4, 3)
    y = pixel_unshuffle(x)
    assert y.shape == (2, 2, 2, 12)
    np.testing.assert_array_equal(y[0, 1, 0, 4:8], x[0, 2:4, 0:2, 1].ravel())
    np.testing.assert_array_equal(pixel_shuffle(y), x)


def test_channels_are_averaged_and_repeated_in_runs():
    x = jnp.array([1.0, 3.0, 5.0, 9.0]).reshape(1, 1, 1, 4)
    np.testing.assert_array_equal(average_channels(x, 2).ravel(), [2, 7])
    np.testing.assert_array_equal(repeat_channels(x[..., :2], 4).ravel(), [1, 1, 3, 3])


@pytest.mark.parametrize("d", [2, 3, 6, 12])
def test_squares_are_averaged_as_their_channels(d):
    """What a TPU computes instead."""
    x = jnp.asarray(np.random.default_rng(0).integers(0, 99, (2, 4, 6, 3)), jnp.float32)
    np.testing.assert_allclose(average_squares(x, d), average_channels(pixel_unshuffle(x), d), rtol=1e-6)


@pytest.mark.parametrize(("h", "w"), [(1, 1), (3, 2), (4, 7)])
def test_a_convolution_of_repeated_pixels_needs_none(h, w):
    rng = np.random.default_rng(0)
    x, kernel, bias = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((2, h, w, 5), (3, 3, 5, 6), (6,)))
    repeated = jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)
    expected = jax.lax.conv_general_dilated(repeated, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")) + bias
    np.testing.assert_allclose(upsampled_conv(x, kernel, bias), expected, rtol=1e-5, atol=1e-5)


def test_a_size_that_is_no_multiple_is_refused():
    with pytest.raises(ValueError, match="multiples of 8"):
        jax.eval_shape(DCAE.encode, abstract(DCAEConfig.tiny()), jax.ShapeDtypeStruct((1, 64, 60, 3), jnp.float32))


# Tiles


@settings(derandomize=True, deadline=None)
@given(length=st.integers(1, 300), halo=st.integers(0, 8), extra=st.integers(1, 40))
def test_tiles_cover_an_axis_outside_their_halos(length, halo, extra):
    tile = 2 * halo + extra
    first = tile_starts(length, tile, halo)
    assert first[0] == 0
    if length > tile:
        assert first[-1] == length - tile
        assert all(0 < after - before <= tile - 2 * halo for before, after in pairwise(first))
        assert len(first) == 1 + -(-(length - tile) // (tile - 2 * halo)), "as few as possible"


def test_tiles_no_longer_than_two_rims_are_refused():
    assert tile_starts(8, 8, 4) == [0]
    with pytest.raises(ValueError, match=r"Raise Tiling\.tile"):
        tile_starts(9, 8, 4)


def test_tiling_starts_above_an_area():
    assert not Tiling().applies_to(2048, 2048)
    assert Tiling().applies_to(2048, 2080)
    assert not Tiling().applies_to(512, 8192)


def test_tiled_is_the_same_function_without_seams(goldens):
    """At most 2e-5 from the whole picture (latents reach 10, pixels 3), and the difference jumps no more than that anywhere."""
    model, pixels = load(goldens), smooth_picture(320, 448)
    encode, decode = (jax.jit(method, static_argnums=2) for method in (DCAE.encode, DCAE.decode))
    latents = encode(model, pixels, WHOLE)
    picture = decode(model, latents, WHOLE)
    cut = Tiling(min_pixels=0, tile=128)
    for whole, parts in ((latents, encode(model, pixels, cut)), (picture, decode(model, latents, cut))):
        assert parts.shape == whole.shape
        difference = np.asarray(parts - whole)
        assert np.abs(difference).max() < 2e-5
        assert max(np.abs(np.diff(difference, axis=axis)).max() for axis in (1, 2)) < 2e-5


@pytest.mark.parametrize(("upsample", "depth"), [("interpolate", 1), ("pixel_shuffle", 0), ("pixel_shuffle", 1)])
def test_the_rim_is_as_wide_as_the_fine_stages_reach(upsample, depth):
    """A changed cell moves nothing outside the rim, in every form of the decoder; a rim of half the width would not do."""
    encoder = (Stage(RES_BLOCK, 8, 1),) * 4
    decoder = (Stage(RES_BLOCK, 8, depth), *encoder[1:])
    config = DCAEConfig(encoder, decoder, latent_channels=4, upsample=upsample)
    assert (config.fine_stages, config.cell) == (2, 4)
    rng = np.random.default_rng(0)
    shapes = module.shapes(abstract(config))
    model = module.with_parameters(
        abstract(config), {path: 0.2 * rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
    )
    for part, stages, scale, d in (("encoder", encoder, config.cell, 3), ("decoder", decoder, 1, 8)):
        cells, middle, run = 32, 16, jax.jit(lambda model, x, part=part: getattr(model, part).fine(x))
        x = rng.normal(size=(1, cells * scale, cells * scale, d)).astype(np.float32)
        changed = x.copy()
        changed[:, middle * scale : (middle + 1) * scale, middle * scale : (middle + 1) * scale] += 1
        moved = np.abs(np.asarray(run(model, jnp.asarray(changed)) - run(model, jnp.asarray(x)))).max((0, 3))
        moved = moved.reshape(cells, len(moved) // cells, cells, -1).max((1, 3)) > 0
        assert config.halo(stages) / 2 < np.abs(np.argwhere(moved) - middle).max() <= config.halo(stages)


@pytest.mark.parametrize("height", [23, 5])
def test_tiled_runs_any_local_function(height):
    """A sum over 3 x 3, in tiles that do not divide the picture, and in one that is shorter than a tile."""
    x = jax.random.normal(jax.random.key(1), (2, height, 37, 3))

    def blur(x):
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
        return rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]

    np.testing.assert_array_equal(apply_tiled(blur, x, tile=9, halo=1, scale_in=1, scale_out=1), blur(x))
