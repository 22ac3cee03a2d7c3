"""Loads checkpoints as modules: a whole Draw-In-Mind or one part, a parameter at a time."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from qwix import QArray

from dim_jax.errors import InputError, check, prefix_errors
from dim_jax.memory import memory_errors
from dim_jax.models.dim import DimConfig
from dim_jax.models.lora import is_factor, with_lora
from dim_jax.models.module import parameters, with_parameters
from dim_jax.models.quantized import Quantize, abstract_like, quantize_on_host, with_quantized
from dim_jax.models.qwen import QwenConfig
from dim_jax.models.sana_config import SanaConfig
from dim_jax.processes import make_global_array
from dim_jax.storage.paths import AnyPath
from dim_jax.weights.families import family_of
from dim_jax.weights.opening import open_weights
from dim_jax.weights.published import Weights

Module = TypeVar("Module", bound=nnx.Module)


def open_dim(path: str | AnyPath, tokenizer: str | AnyPath | None = None) -> tuple[Weights, DimConfig, Any]:
    """Opens a whole model of any family in any format: its weights (not read yet), sizes, and processor (with `tokenizer`, if given).

    Raises:
        InputError: it is damaged or incomplete, its parts do not belong together, or it has no tokenizer.
    """
    weights = open_weights(path)
    encoder, sana, autoencoder = weights.config.encoder, weights.config.sana, weights.config.autoencoder
    if encoder is None or sana is None or autoencoder is None:
        raise InputError(f"{path} has only {', '.join(weights.config.parts)}. A whole Draw-In-Mind is needed; see `dim convert`.")
    check(
        tokenizer is not None or weights.tokenizer,
        f"{path} has no tokenizer. Give one (--tokenizer), or add it once: dim convert {path} OUT --to orbax --tokenizer T.",
    )
    with prefix_errors(path):
        config = DimConfig(encoder, sana, autoencoder)
    return weights, config, family_of(config).processor(tokenizer or weights.tokenizer[0].parent, config)


def require_qwen(encoder: Any, what: str) -> None:
    """Refuse, for `what` needs it, an encoder that is not Draw-In-Mind's Qwen2.5-VL.

    Raises:
        InputError: it is that of another family.
    """
    if encoder is not None and not isinstance(encoder, QwenConfig):
        raise InputError(f"{what} needs an encoder of Draw-In-Mind, Qwen2.5-VL; this one is {encoder.to_hf()['model_type']}.")


def check_edits(sana: SanaConfig, name: str | AnyPath) -> None:
    """Refuse a model without source channels.

    Raises:
        InputError: its SANA has no source channels.
    """
    check(sana.is_edit, f"{name} generates from text only (its SANA has no source channels). Use `dim generate`, or an edit checkpoint.")


def load_module(
    make: Callable[[nnx.Rngs], Module],
    weights: Weights,
    dtype: np.dtype,
    part: str = "",
    param_sharding: Callable[[str], jax.sharding.Sharding] | None = None,
    quantize: Quantize | None = None,
    on_host: bool = False,
) -> Module:
    """The module that `make` makes, with the parameters of a checkpoint, or of its `part` ("encoder"), in `dtype`.

    Each is read once, directly to where `param_sharding(its path in the checkpoint)` says; None: to the default device, or with `on_host`
    to the host's memory. `quantize`: the kernels of a Draw-In-Mind's large layers in 8 or 4 bits, each as it is read.

    Raises:
        InputError: the checkpoint is damaged, or there is not enough memory.
    """
    module = with_quantized(nnx.eval_shape(lambda: make(nnx.Rngs(0))), quantize)
    prefix = f"{part}." if part else ""
    abstract = {f"{prefix}{path}": leaf for path, leaf in parameters(module).items()}
    abstract = abstract_like(abstract, dtype, param_sharding) if param_sharding else abstract_like(abstract, dtype)
    remedy = "Take --quantize int8 or int4, --offload, --dtype bfloat16, a device with more, or cut it over several (--devices fsdp=2)."
    with memory_errors(f"{weights.where}: loading it as {dtype.name}", remedy):
        tensors = _read(weights, abstract, _to_host if on_host else _to_device)
    return with_parameters(module, {path.removeprefix(prefix): tensor for path, tensor in tensors.items()})


def add_factors(
    make: Callable[[nnx.Rngs], Module],
    module: Module,
    factors: Mapping[str, np.ndarray],
    param_sharding: Callable[[str], jax.sharding.Sharding] | None = None,
    quantize: Quantize | None = None,
    on_host: bool = False,
) -> Module:
    """What `make` makes, with the parameters of `module`, which stay where they are, and adapters with these factors (`lora.stacked`) in
    place of those that `module` has; the others as in `load_module`."""
    params = {path: tensor for path, tensor in parameters(module).items() if not is_factor(path)}
    ranks = {path.removesuffix(".lora_a"): factor.shape[-1] for path, factor in factors.items() if path.endswith(".lora_a")}
    put, tensors = _to_host if on_host else _to_device, {}
    for path, factor in factors.items():
        sharding, dtype = param_sharding and param_sharding(path), params[f"{path.rpartition('.')[0]}.kernel"].dtype
        tensors[path] = put(factor, jax.ShapeDtypeStruct(factor.shape, dtype, sharding=sharding))
    abstract = with_quantized(nnx.eval_shape(lambda: make(nnx.Rngs(0))), quantize)
    return with_parameters(with_lora(abstract, ranks), params | tensors)


def load_params(weights: Weights, abstract: Mapping[str, jax.ShapeDtypeStruct | QArray]) -> dict[str, jax.Array | QArray]:
    """The parameters in `abstract` that a checkpoint holds, each read directly into its sharding and dtype there."""
    return _read(weights, abstract, _to_device)


def _read(
    weights: Weights, abstract: Mapping[str, jax.ShapeDtypeStruct | QArray], put: Callable[[np.ndarray, jax.ShapeDtypeStruct], Any]
) -> dict[str, Any]:
    """`put(tensor, its abstract parameter)` for each; a kernel that is quantized is so as soon as it is read."""
    params = {}
    for path, tensor in weights.stream(abstract.keys()):
        leaf = abstract[path]
        if isinstance(leaf, QArray):
            params[path] = jax.tree.map(put, quantize_on_host(tensor, leaf), leaf)
        else:
            params[path] = put(tensor, leaf)
    return params


def _to_host(tensor: np.ndarray, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    return np.array(tensor, leaf.dtype)


def _to_device(tensor: np.ndarray, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    return jnp.asarray(tensor, leaf.dtype) if leaf.sharding is None else make_global_array(tensor, leaf.sharding, leaf.dtype)
