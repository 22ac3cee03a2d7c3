"""What several networks share: stacked layers, shifted depthwise convolution, linear attention.

Parameters are created in float32; `dtype` is the dtype that a layer computes in.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

Layer = TypeVar("Layer", bound=nnx.Module)


def stack(make: Callable[[nnx.Rngs], Layer], depth: int, rngs: nnx.Rngs) -> Layer:
    """`depth` layers made by `make(rngs)`, each with its own random stream, as one module with a leading layer axis."""

    @nnx.split_rngs(splits=depth)
    @nnx.vmap(in_axes=0, out_axes=0)
    def build(rngs: nnx.Rngs) -> Layer:
        return make(rngs)

    return build(rngs)


def scan(layers: Layer, step: Callable[[Layer, Any, Any], tuple[Any, Any]], carry: Any, xs: Any = None, *, remat: bool = False) -> tuple[Any, Any]:
    """Run stacked layers in order: `carry, y = step(layer, carry, x)`, with `xs` and the returned `ys` stacked on axis 0.

    Compile time does not grow with depth. With `remat` the backward pass recomputes each layer from its carry.
    """
    graphdef, state = nnx.split(layers)

    def body(carry, layer):
        parameters, x = layer
        return step(nnx.merge(graphdef, parameters), carry, x)

    return jax.lax.scan(jax.checkpoint(body) if remat else body, carry, (state, xs))


class DepthwiseConv(nnx.Module):
    """Depthwise k x k convolution, stride 1, zero padding, as k*k shifted multiply-adds that XLA fuses with their neighbours."""

    def __init__(self, d: int, size: int = 3, *, use_bias: bool = True, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.kernel = nnx.Param(nnx.initializers.normal(1 / size)(rngs.params(), (size, size, d)))
        self.bias = nnx.Param(jnp.zeros(d)) if use_bias else None
        self.size, self.dtype = size, dtype

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        kernel, pad = self.kernel[...].astype(self.dtype), self.size // 2
        _, h, w, _ = x.shape
        padded = jnp.pad(x.astype(self.dtype), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        shifts = [(i, j) for i in range(self.size) for j in range(self.size)]
        y = sum(padded[:, i : i + h, j : j + w] * kernel[i, j] for i, j in shifts)
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


def linear_attention(
    q: Float[Array, "b l n k"], k: Float[Array, "b l n k"], v: Float[Array, "b l n k"], *, eps: float
) -> Float[Array, "b l n k"]:
    """ReLU linear attention, sum_j (relu(q_i) . relu(k_j)) v_j / (sum_j relu(q_i) . relu(k_j) + eps), in float32; q's dtype out.

    Linear in the number of tokens l. Katharopoulos et al. (arXiv 2006.16236) with the ReLU of EfficientViT (arXiv 2205.14756).
    """
    dtype = q.dtype
    q, k, v = jax.nn.relu(q).astype(jnp.float32), jax.nn.relu(k).astype(jnp.float32), v.astype(jnp.float32)
    state = jnp.einsum("blnk,blnm->bnkm", k, v)
    numerator = jnp.einsum("blnk,bnkm->blnm", q, state)
    denominator = jnp.einsum("blnk,bnk->bln", q, k.sum(1))
    return (numerator / (denominator[..., None] + eps)).astype(dtype)
