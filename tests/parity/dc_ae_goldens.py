"""DC-AE against tensors that diffusers computed: the latents before and after scaling, and the pixels."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from dim_jax.models import module
from dim_jax.models.dc_ae import DCAE
from dim_jax.models.dc_ae_config import DCAEConfig
from dim_jax.weights import dc_ae, table
from tests.parity.goldens import Goldens, Group, as_goldens, nchw, nhwc


@cache
def abstract(config: DCAEConfig, dtype: DTypeLike) -> tuple[DCAE, dict[str, table.TensorMapping]]:
    """The model without memory and where its published tensors go."""
    model = nnx.eval_shape(lambda: DCAE(config, dtype=dtype, rngs=nnx.Rngs(0)))
    return model, table.tensor_mappings(dc_ae.ROWS, module.shapes(model))


def load(folder: Goldens | Path, dtype: DTypeLike = jnp.float32) -> DCAE:
    """The DC-AE of dc_ae.config.json with dc_ae.weights.safetensors, computing in `dtype`."""
    goldens = as_goldens(folder)
    goldens.json("dc_ae.config.json")  # names the file if it is missing
    model, slots = abstract(DCAEConfig.from_hf(goldens / "dc_ae.config.json"), dtype)
    return module.with_parameters(model, table.from_hf(slots, goldens.tensors("dc_ae.weights.safetensors").__getitem__))


@jax.jit
def _encoded(model: DCAE, pixels) -> tuple[jnp.ndarray, jnp.ndarray]:
    return model.encoder(pixels), model.encode(pixels)


_decode = jax.jit(DCAE.decode)


def groups(goldens: Goldens, model: DCAE | None = None) -> Iterator[Group]:
    """Every case in dc_ae.forward.safetensors."""
    info, data = goldens.json("dc_ae.json"), goldens.tensors("dc_ae.forward.safetensors")
    model = load(goldens) if model is None else model
    tolerance, scale = (info["rtol"], info["atol"]), np.float32(info["scaling_factor"])
    for case in data.cases():
        now = data.under(f"{case}.")
        ours, latents = _encoded(model, nhwc(now["pixels"]))
        yield Group(f"{case}.encoded", nchw(ours), now["encoded"], *tolerance)
        yield Group(f"{case}.latents", nchw(latents), now["encoded"] * scale, *tolerance)
        yield Group(f"{case}.decoded", nchw(_decode(model, nhwc(now["encoded"] * scale))), now["decoded"], *tolerance)
