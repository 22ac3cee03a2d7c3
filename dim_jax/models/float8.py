"""Products of linear layers in float8, twice as fast as in bfloat16 on GPUs that have them (since H100).

"FP8 formats for deep learning" (arXiv 2209.05433) has the formats: e4m3, of three bits of mantissa, and for gradients e5m2, of two, with
more range. All scales are powers of two, which round nothing.

Painting (`Float8Linear`): a kernel is converted once, and factors are scaled by two numbers whose product is 1, so that nothing has to be
scaled back: a kernel and inputs of about 1 share the kernel's smallness, since the format loses bits below 2**-6.

Training (`with_float8`): each factor is scaled in each step so that its largest number is among the format's largest.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dim_jax.models.quantized import dense

Module = TypeVar("Module", bound=nnx.Module)

FLOAT8, FLOAT8_GRADIENT = jnp.float8_e4m3fn, jnp.float8_e5m2
LARGEST = {dtype: float(jnp.finfo(dtype).max) for dtype in (FLOAT8, FLOAT8_GRADIENT)}
SMALLEST = 1e-30  # a largest number below which all are taken for zeros
# The large products of a block of SANA. Cross-attention, modulation, first and last layers stay as they are.
LARGE_LAYERS = ("attn.qkv", "attn.proj", "mlp.inverted_conv", "mlp.point_conv")


class Float8Linear(nnx.Module):
    """A linear layer whose product is of float8 numbers with sums in float32; bias, input and output are in the dtype of `base`.

    The kernel is converted once, the input in each call; numbers that are too large for the format become its largest.
    """

    def __init__(self, base: nnx.Linear):
        kernel = dense(base.kernel[...], jnp.float32)
        size = jnp.maximum(jnp.sqrt(jnp.mean(kernel**2)), 1e-12)
        scale = jnp.exp2(jnp.round(-0.5 * jnp.log2(size)))
        self.kernel = nnx.Param(_to_float8(kernel * scale).T)  # as the products of GPUs read it: both factors along the summed axis
        self.input_scale = nnx.Param(1 / scale)
        self.bias, self.dtype = base.bias, base.dtype

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b f"]:
        y = self.product(x)
        return y if self.bias is None else y + self.bias[...].astype(y.dtype)

    def product(self, x: Float[Array, "*b d"]) -> Float[Array, "*b f"]:
        """Without the bias."""
        rows = _to_float8(x.reshape(-1, x.shape[-1]).astype(jnp.float32) * self.input_scale[...])
        return _product(rows, self.kernel[...], (1, 1), self.dtype or x.dtype).reshape(*x.shape[:-1], -1)


def convert_block(block: Any) -> None:
    """Put a `Float8Linear` in the place of each of LARGE_LAYERS of a block of SANA."""
    for path in LARGE_LAYERS:
        part, name = path.split(".")
        setattr(getattr(block, part), name, Float8Linear(getattr(getattr(block, part), name)))


def with_float8(model: Module) -> Module:
    """The same abstract model, whose "sana" computes LARGE_LAYERS by `float8_product`; no parameter changes."""
    large = {f"sana.blocks.{name}" for name in LARGE_LAYERS}

    def attach(model: Module) -> Module:
        for path, layer in nnx.iter_modules(model):
            if isinstance(layer, nnx.Linear) and ".".join(map(str, path)) in large:
                layer.dot_general = _dot_general
        return model

    return nnx.eval_shape(attach, model)


class Scaled(NamedTuple):
    """A matrix in float8, and the power of two that it is to be multiplied by."""

    numbers: Float[Array, "n m"]
    scale: Float[Array, ""]


@jax.custom_vjp
def float8_product(x: Float[Array, "*b d"], kernel: Float[Array, "d f"]) -> Float[Array, "*b f"]:
    """x @ kernel in e4m3, in x's dtype. Its gradients are products of these and of the result's gradient in e5m2; x is kept in float8."""
    return _forward(x, kernel)[0]


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Scaled, Scaled]]:
    rows, columns = _scale(x.reshape(-1, x.shape[-1]), FLOAT8), _scale(kernel, FLOAT8)
    return _scaled_product(rows, columns, (1, 0), x.dtype).reshape(*x.shape[:-1], -1), (rows, columns)


def _backward(kept: tuple[Scaled, Scaled], change: Array) -> tuple[Array, Array]:
    (rows, columns), dtype = kept, change.dtype
    changes = _scale(change.reshape(-1, change.shape[-1]), FLOAT8_GRADIENT)
    to_x = _scaled_product(changes, columns, (1, 1), dtype).reshape(*change.shape[:-1], -1)
    return to_x, _scaled_product(rows, changes, (0, 0), dtype)


float8_product.defvjp(_forward, _backward)


def _dot_general(x: Array, kernel: Array, *_: Any, **__: Any) -> Array:
    """`float8_product`, called as linear layers call `jax.lax.dot_general`."""
    return float8_product(x, kernel)


def _scale(x: Float[Array, "n m"], dtype: Any) -> Scaled:
    largest = jnp.maximum(jnp.abs(x).max().astype(jnp.float32), SMALLEST)
    scale = jnp.exp2(jnp.ceil(jnp.log2(largest / LARGEST[dtype])))
    return Scaled(_to_float8(x.astype(jnp.float32) / scale, dtype), scale)


def _scaled_product(a: Scaled, b: Scaled, axes: Sequence[int], dtype: Any) -> Float[Array, "n m"]:
    y = _product(a.numbers, b.numbers, axes, dtype)
    return (y.astype(jnp.float32) * (a.scale * b.scale)).astype(dtype)


def _product(a: Float[Array, "n m"], b: Float[Array, "k l"], axes: Sequence[int], dtype: Any) -> Float[Array, "o p"]:
    """a and b, multiplied and summed along one axis of each, with sums in float32."""
    contract = ((tuple(axes[:1]), tuple(axes[1:])), ((), ()))
    return jax.lax.dot_general(a, b, contract, precision=jax.lax.Precision.DEFAULT, preferred_element_type=dtype)


def _to_float8(x: Float[Array, "..."], dtype: Any = FLOAT8) -> Float[Array, "..."]:
    return jnp.clip(x, -LARGEST[dtype], LARGEST[dtype]).astype(dtype)
