"""DC-AE against tensors that diffusers computed: the latents before and after scaling, and the pixels."""

import json
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from safetensors.numpy import load_file

from dim_jax.models.dc_ae import DCAE
from dim_jax.models.dc_ae_config import DCAEConfig
from dim_jax.weights import dc_ae, module, table

Group = tuple[str, np.ndarray, np.ndarray, float, float]


def load(folder: Path, dtype: DTypeLike = jnp.float32) -> DCAE:
    """The DC-AE of dc_ae.config.json with dc_ae.weights.safetensors, computing in `dtype`."""
    config = DCAEConfig.from_hf(folder / "dc_ae.config.json")
    abstract = nnx.eval_shape(lambda: DCAE(config, dtype=dtype, rngs=nnx.Rngs(0)))
    published = load_file(folder / "dc_ae.weights.safetensors")
    slots = table.slots(dc_ae.ROWS, module.shapes(abstract))
    return module.with_parameters(abstract, table.to_ours(slots, published.__getitem__))


def nhwc(x: np.ndarray) -> jnp.ndarray:
    return jnp.asarray(np.moveaxis(x, 1, -1))


def nchw(x: jnp.ndarray) -> np.ndarray:
    return np.moveaxis(np.asarray(x), -1, 1)


def groups(folder: Path) -> Iterator[Group]:
    """Every case in dc_ae.forward.safetensors: group name, ours, golden, rtol, atol."""
    info, data, model = json.loads((folder / "dc_ae.json").read_text()), load_file(folder / "dc_ae.forward.safetensors"), load(folder)
    tolerance, scale = (info["rtol"], info["atol"]), info["scaling_factor"]
    both = jax.jit(lambda model, x: (model.encoder(x), model.encode(x)))
    decode = jax.jit(lambda model, x: model.decode(x))
    for case in sorted({key.split(".")[0] for key in data}, key=int):
        pixels, encoded, decoded = (data[f"{case}.{name}"] for name in ("pixels", "encoded", "decoded"))
        ours, latents = both(model, nhwc(pixels))
        yield f"{case}.encoded", nchw(ours), encoded, *tolerance
        yield f"{case}.latents", nchw(latents), encoded * np.float32(scale), *tolerance
        yield f"{case}.decoded", nchw(decode(model, nhwc(encoded * np.float32(scale)))), decoded, *tolerance
