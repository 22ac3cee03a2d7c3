"""What tests of SANA share: a small model whose every parameter counts, and inputs for it."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from dim_jax.models import module
from dim_jax.models.sana import Condition, Sana
from dim_jax.models.sana_config import SanaConfig


def config(*, edit: bool = True, depth: int = 2, condition_length: int = 6) -> SanaConfig:
    """Heads, widths and channels that no two of are the same by accident."""
    return SanaConfig(8 if edit else 4, 4, 48, depth, 2, 8, 12, condition_length)


def sana(sizes: SanaConfig | None = None, *, seed: int = 0, dtype: DTypeLike = jnp.float32) -> Sana:
    """Random biases and scales too; the condition's norm near one, not 0.01, so that the condition shows. Filled without compiling."""
    sizes, rng = sizes or config(), np.random.default_rng(seed)
    model = nnx.eval_shape(lambda: Sana(sizes, dtype=dtype, rngs=nnx.Rngs(0)))

    def random(path: str, shape: tuple[int, ...]) -> jax.Array:
        x = rng.normal(size=shape)
        if path.endswith("depth_conv.kernel"):
            x = x / 3
        elif path.endswith(("kernel", "y_embedding")):
            x = x / shape[-2] ** 0.5
        elif path.endswith("scale"):
            x = 1 + 0.1 * x
        else:
            x = 0.3 * x
        return jnp.asarray(x, jnp.float32)

    return module.with_parameters(model, {path: random(path, shape) for path, shape in module.shapes(model).items()})


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def mask(lengths: list[int], t: int) -> jax.Array:
    return jnp.arange(t) < jnp.array(lengths)[:, None]


@jax.jit
def velocity_of(model: Sana, latents, timestep, condition: Condition, source=None):
    """With a condition that was encoded before."""
    return model(latents, timestep, condition, source)


@jax.jit
def velocity(model: Sana, latents, timestep, condition, mask, source=None):
    """Condition and velocity in one compiled call."""
    return model(latents, timestep, model.encode_condition(condition, mask), source)
