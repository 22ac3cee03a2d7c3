"""Loads checkpoints as modules: a whole Draw-In-Mind or one part, a parameter at a time."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dim_jax.errors import InputError, check, prefix_errors
from dim_jax.memory import memory_errors
from dim_jax.models.dim import DimConfig
from dim_jax.models.lora import is_factor, with_lora
from dim_jax.models.module import parameters, with_parameters
from dim_jax.models.sana_config import SanaConfig
from dim_jax.processes import make_global_array
from dim_jax.processing.processor import Processor
from dim_jax.storage.paths import AnyPath
from dim_jax.weights.opening import open_weights
from dim_jax.weights.published import Weights

Module = TypeVar("Module", bound=nnx.Module)


def open_dim(path: str | AnyPath, tokenizer: str | AnyPath | None = None) -> tuple[Weights, DimConfig, Processor]:
    """Opens a whole Draw-In-Mind in any format: its weights (not read yet), sizes, and processor (with `tokenizer`, if given).

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
    processor = Processor.from_pretrained(
        tokenizer or weights.tokenizer[0].parent, condition_length=sana.condition_length, layout=encoder.vision.layout
    )
    vocabulary, image = encoder.text.vocab_size, encoder.image_token_id
    check(
        processor.tokenizer.image_id == image and processor.tokenizer.max_id < vocabulary,
        f"{tokenizer or path}: its tokenizer has <|image_pad|> = {processor.tokenizer.image_id} and ids up to "
        f"{processor.tokenizer.max_id}, the encoder has {image} and {vocabulary} ids. "
        "Use the tokenizer that the encoder was trained with.",
    )
    return weights, config, processor


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
) -> Module:
    """The module that `make` makes, with the parameters of a checkpoint, or of its `part` ("encoder"), in `dtype`.

    Each is read once, directly to where `param_sharding(its path in the checkpoint)` says; None: to the default device.

    Raises:
        InputError: the checkpoint is damaged, or there is not enough memory.
    """
    module = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    prefix = f"{part}." if part else ""
    stream = weights.stream([path for path in weights.parameters if path.startswith(prefix)])
    remedy = "Take --dtype bfloat16, a device with more, or cut it over several (--devices fsdp=2)."
    with memory_errors(f"{weights.where}: loading it as {dtype.name}", remedy):
        tensors = {
            path.removeprefix(prefix): jnp.asarray(tensor, dtype)
            if param_sharding is None
            else make_global_array(tensor, param_sharding(path), dtype)
            for path, tensor in stream
        }
    return with_parameters(module, tensors)


def add_factors(
    make: Callable[[nnx.Rngs], Module],
    module: Module,
    factors: Mapping[str, np.ndarray],
    param_sharding: Callable[[str], jax.sharding.Sharding] | None = None,
) -> Module:
    """What `make` makes, with the parameters of `module`, which stay where they are, and adapters with these factors (`lora.stacked`) in
    place of those that `module` has; `param_sharding` as in `load_module`."""
    params = {path: tensor for path, tensor in parameters(module).items() if not is_factor(path)}
    ranks = {path.removesuffix(".lora_a"): factor.shape[-1] for path, factor in factors.items() if path.endswith(".lora_a")}
    tensors = {}
    for path, factor in factors.items():
        dtype = params[f"{path.rpartition('.')[0]}.kernel"].dtype
        tensors[path] = jnp.asarray(factor, dtype) if param_sharding is None else make_global_array(factor, param_sharding(path), dtype)
    return with_parameters(with_lora(nnx.eval_shape(lambda: make(nnx.Rngs(0))), ranks), params | tensors)


def load_params(weights: Weights, abstract: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """The parameters in `abstract` that a checkpoint holds, each read directly into its sharding and dtype there."""
    return {
        path: make_global_array(tensor, abstract[path].sharding, abstract[path].dtype) for path, tensor in weights.stream(abstract.keys())
    }
