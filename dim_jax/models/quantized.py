"""Kernels of the large linear layers in 8 or 4 bits, by qwix: each is made dense where it is used, and the product is as before.

    int8    a scale for each output channel (LLM.int8, arXiv 2208.07339, without its outliers)
    int4    a scale for each output channel and up to `GROUP` inputs

A kernel is then a `qwix.QArray` where others are arrays: in the same parameter, under the same path, with the kernel's shape, and as dtype
that of its scales. Quantized are the linear layers of the encoder's and SANA's blocks (`PREFIXES`), which are nearly all weights. Norms,
embeddings, tables, modulation, first and last layers and the autoencoder stay as they are.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import qwix
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from jax.typing import DTypeLike
from jaxtyping import Array, Float
from qwix import QArray

Module = TypeVar("Module", bound=nnx.Module)
Quantize = Literal["int8", "int4"]

PREFIXES = ("encoder.model.layers.", "encoder.visual.blocks.", "sana.blocks.")
GROUP = 64  # inputs that share a scale in int4, at most: SANA's width has 35 such groups


def quantize(kernel: Float[Array, "*layers d f"], qtype: Quantize, dtype: DTypeLike) -> QArray:
    """A kernel, or a stack of them, in 8 or 4 bits with scales in `dtype`; rounded from float32."""
    inputs = kernel.ndim - 2
    d = kernel.shape[inputs]
    tiles = {inputs: max(size for size in range(1, GROUP + 1) if d % size == 0)} if qtype == "int4" else None
    others = [axis for axis in range(kernel.ndim) if axis != inputs]
    return qwix.quantize(kernel.astype(jnp.float32), jnp.dtype(qtype), channelwise_axes=others, tiled_axes=tiles, scale_dtype=dtype)


def cast_like(kernel: Array, leaf: jax.ShapeDtypeStruct | QArray) -> Array | QArray:
    """A parameter as an abstract one is: in its dtype, or quantized."""
    return quantize(kernel, _name(leaf), leaf.dtype) if isinstance(leaf, QArray) else kernel.astype(leaf.dtype)


_quantize = jax.jit(quantize, static_argnums=(1, 2))


def quantize_on_host(kernel: Float[np.ndarray, "*layers d f"], like: QArray) -> QArray:
    """A kernel, quantized as an abstract one is. Both are in the host's memory; the default device holds one layer at a time."""
    layers = kernel.reshape(-1, *kernel.shape[-2:])
    parts = [jax.device_get(_quantize(layer, _name(like), jnp.dtype(like.dtype))) for layer in layers]
    return jax.tree.map(lambda *arrays: np.stack(arrays).reshape(*kernel.shape[:-2], *arrays[0].shape), *parts)


def with_quantized(model: Module, qtype: Quantize | None) -> Module:
    """The same abstract model, a Draw-In-Mind or some of its parts, with kernels of 8 or 4 bits; None: as it is."""

    def attach(model: Module) -> Module:
        for path, layer in list(nnx.iter_modules(model)):
            if isinstance(layer, nnx.Linear) and ".".join(map(str, path)).startswith(PREFIXES):
                assert qtype is not None
                kernel: Any = nnx.Param(quantize(layer.kernel[...], qtype, layer.dtype or jnp.float32))
                layer.kernel, layer.promote_dtype = kernel, _promote_dtype
        return model

    return nnx.eval_shape(attach, model) if qtype else model


def is_quantized(layer: nnx.Linear) -> bool:
    """Whether a layer has a kernel of 8 or 4 bits."""
    return isinstance(layer.kernel.get_value(), QArray)


def dense(kernel: Array | QArray, dtype: DTypeLike) -> Array:
    """The numbers of a kernel as an array of `dtype`."""
    return (qwix.dequantize(kernel) if isinstance(kernel, QArray) else kernel).astype(dtype)


def abstract_like(
    params: Mapping[str, Any], dtype: DTypeLike, param_sharding: Callable[[str], Any] = lambda path: None
) -> dict[str, jax.ShapeDtypeStruct | QArray]:
    """Parameters by path as abstract ones of `dtype`, each with its sharding; the scales of a kernel at PATH have that of PATH_scale."""

    def leaf(path: str, x: Any, dtype: DTypeLike) -> Any:
        return jax.ShapeDtypeStruct(x.shape, dtype, sharding=param_sharding(path))

    return {
        path: replace(x, qvalue=leaf(path, x.qvalue, x.qvalue.dtype), scale=leaf(f"{path}_scale", x.scale, dtype))
        if isinstance(x, QArray)
        else leaf(path, x, dtype)
        for path, x in params.items()
    }


def num_bytes(leaf: Any) -> int:
    """Bytes of an array, abstract or not, or of a quantized one, as a device holds them: two numbers of 4 bits in one."""
    return sum(x.size * (1 if x.dtype == jnp.int4 else 2 * x.dtype.itemsize) for x in jax.tree.leaves(leaf)) // 2


def _name(array: QArray) -> Any:
    return jnp.dtype(array.qtype).name


def _promote_dtype(arrays: tuple[Array, Array | QArray, Array | None], /, *, dtype: Any = None, inexact: bool = True) -> Any:
    """What `nnx.Linear` does with inputs, kernel and bias before the product, for a quantized kernel."""
    inputs, kernel, bias = arrays
    return promote_dtype((inputs, dense(kernel, kernel.dtype), bias), dtype=dtype, inexact=inexact)
