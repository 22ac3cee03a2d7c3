"""A LoRA in a training run: the layers that config.lora adapts, and the initial values of their factors."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Sharding

from dim_jax.config import Config
from dim_jax.data.synthetic import SYNTHETIC
from dim_jax.errors import InputError
from dim_jax.rng import key_seed
from dim_jax.weights.lora import PARTS, kernels
from dim_jax.weights.table import Shape


def check_lora(config: Config) -> None:
    """Refuse an inconsistent `config.lora`.

    Raises:
        InputError: a number is too small; a trainable component cannot have adapters; or a component has no checkpoint, without
            which its adapters would be useless.
    """
    options = config.lora
    if options.rank < 0 or not options.alpha > 0:
        raise InputError(f"config.lora: rank {options.rank} must be at least 1, or 0 for no LoRA, and alpha {options.alpha} positive.")
    if not options.rank:
        return
    if invalid := [component for component in config.trainable if component not in PARTS]:
        raise InputError(
            f"config.lora.rank is {options.rank}: adapters are of {' and '.join(PARTS)}, not of {', '.join(invalid)}. Freeze it."
        )
    if config.data.source != SYNTHETIC and (missing := [name for name in (*config.trainable, *config.frozen) if not config.init[name]]):
        raise InputError(f"config.init: {', '.join(missing)}: a LoRA is of a checkpoint. Name the one that each component comes from.")


def adapted_layers(config: Config, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Layer -> shape of its kernel, of every layer of a model with these shapes that `config.lora` adapts; empty: no LoRA.

    Raises:
        InputError: a pattern of `config.lora.targets` fits no layer of the trainable components.
    """
    if not config.lora.rank:
        return {}
    layers, targets = kernels(shapes, config.trainable), tuple(config.lora.targets)
    unused = [pattern for pattern in targets if not any(fnmatchcase(layer, pattern) for layer in layers)]
    if unused or not targets:
        raise InputError(f"config.lora.targets {targets}: {', '.join(unused) or 'nothing'} fits no layer. There are {', '.join(layers)}.")
    return {layer: shape for layer, shape in layers.items() if any(fnmatchcase(layer, pattern) for pattern in targets)}


def init_factors(seed: int, abstract: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """The initial value of every factor in `abstract`, in its sharding and dtype: `lora_b` zero, `lora_a` uniform up to 1 / sqrt(d), as
    in PEFT."""
    shardings: dict[str, Sharding] = {path: leaf.sharding for path, leaf in abstract.items() if leaf.sharding is not None}
    return jax.jit(partial(_draw, seed, abstract), out_shardings=shardings)()


def _draw(seed: int, abstract: Mapping[str, Any]) -> dict[str, jax.Array]:
    factors = {}
    for path, leaf in abstract.items():
        if path.endswith("lora_b"):
            factors[path] = jnp.zeros(leaf.shape, leaf.dtype)
        else:
            bound = leaf.shape[-2] ** -0.5
            factors[path] = jax.random.uniform(jax.random.key(key_seed(seed, f"params/{path}")), leaf.shape, leaf.dtype, -bound, bound)
    return factors
