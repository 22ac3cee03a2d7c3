"""DC-AE against the goldens and against diffusers' AutoencoderDC with random sizes and weights."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers import AutoencoderDC
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from dim_jax.models import module
from dim_jax.models.dc_ae import DCAE
from dim_jax.models.dc_ae_config import RES_BLOCK, VIT_BLOCK, DCAEConfig, Stage
from dim_jax.weights import dc_ae, table
from tests.parity.dc_ae_goldens import load
from tests.parity.goldens import nchw, nhwc

TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


def test_the_golden_weights_go_back_byte_for_byte(goldens):
    published = load_file(goldens / "dc_ae.weights.safetensors")
    model = load(goldens)
    slots = table.tensor_mappings(dc_ae.ROWS, module.shapes(model))
    back = {name: np.asarray(tensor) for name, tensor in table.to_hf(slots, module.parameters(model).__getitem__)}
    assert back.keys() == published.keys()
    assert all(back[name].tobytes() == published[name].tobytes() for name in published)


@st.composite
def sizes(draw) -> dict:
    """Two or three stages of every supported form, as plain arguments of DCAEConfig."""
    count = draw(st.integers(2, 3))
    widths = sorted(draw(st.lists(st.sampled_from([8, 16]), min_size=count, max_size=count)))

    def stages(may_be_empty: bool) -> list[tuple]:
        first, scales = draw(st.integers(1, count)), draw(st.sampled_from([(), (5,), (3, 5)]))
        depths = [draw(st.integers(0 if may_be_empty else 1, 1)), *(draw(st.integers(1, 2)) for _ in range(count - 1))]
        return [(VIT_BLOCK, d, n, scales) if i >= first else (RES_BLOCK, d, n) for i, (d, n) in enumerate(zip(widths, depths, strict=True))]

    return {
        "encoder": stages(may_be_empty=False),
        "decoder": stages(may_be_empty=True),
        "latent_channels": draw(st.sampled_from([2, 4])),
        "attention_head_dim": draw(st.sampled_from([4, 8])),
        "upsample": draw(st.sampled_from(["interpolate", "pixel_shuffle"])),
        "decoder_activation": draw(st.sampled_from(["relu", "silu"])),
        "scaling_factor": draw(st.sampled_from([0.41407, 1.0])),
    }


@settings(max_examples=6, derandomize=True, deadline=None)
@given(size=sizes(), batch=st.integers(1, 2), height=st.integers(1, 4), width=st.integers(1, 4), seed=st.integers(0, 99))
def test_random_sizes_equal_diffusers(size, batch, height, width, seed):
    """One cell to sixteen: diffusers changes to a quadratic form of the attention where there are no more tokens than head channels."""
    stages = {side: tuple(Stage(*stage) for stage in size[side]) for side in ("encoder", "decoder")}
    config = DCAEConfig(**size | stages)
    torch.manual_seed(seed)
    theirs = AutoencoderDC.from_config(json.loads(json.dumps(config.to_hf()))).eval().requires_grad_(False)
    for parameter in theirs.parameters():  # norms start at one and zero, which would hide a mistaken name
        parameter.add_(0.1 * torch.randn_like(parameter))
    published = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    abstract = nnx.eval_shape(lambda: DCAE(config, rngs=nnx.Rngs(0)))
    slots = table.tensor_mappings(dc_ae.ROWS, module.shapes(abstract))
    assert slots.keys() == published.keys()
    ours = module.with_parameters(abstract, table.from_hf(slots, published.__getitem__))

    rng = np.random.default_rng(seed)
    pixels = rng.uniform(-1, 1, (batch, 3, height * config.factor, width * config.factor)).astype(np.float32)
    latents = rng.normal(size=(batch, config.latent_channels, height, width)).astype(np.float32)
    encoded = theirs.encode(torch.from_numpy(pixels)).latent.numpy() * config.scaling_factor
    decoded = theirs.decode(torch.from_numpy(latents / config.scaling_factor)).sample.numpy()
    np.testing.assert_allclose(nchw(jax.jit(DCAE.encode)(ours, nhwc(pixels))), encoded, **TOLERANCE)
    np.testing.assert_allclose(nchw(jax.jit(DCAE.decode)(ours, nhwc(latents))), decoded, **TOLERANCE)

    back = dict(table.to_hf(slots, module.parameters(ours).__getitem__))
    assert all(np.asarray(back[name]).tobytes() == tensor.tobytes() for name, tensor in published.items())


def test_bfloat16_error_is_bounded(goldens):
    """Root mean square against float32, in parts of the signal: under 2 % of latents and pixels with the goldens' random weights."""
    model, data = load(goldens, jnp.bfloat16), load_file(goldens / "dc_ae.forward.safetensors")
    scale = model.config.scaling_factor
    latents = jax.jit(DCAE.encode)(model, nhwc(data["0.pixels"]))
    pixels = jax.jit(DCAE.decode)(model, nhwc(data["0.encoded"]) * scale)
    for name, got, want in (("latents", latents, data["0.encoded"] * scale), ("pixels", pixels, data["0.decoded"])):
        assert got.dtype == np.float32
        error = np.sqrt(np.mean(np.square(nchw(got) - want)) / np.mean(np.square(want)))
        assert 1e-4 < error < 0.02, f"{name}: {error}"
