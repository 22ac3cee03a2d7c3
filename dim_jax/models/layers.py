"""What several networks share: stacked layers, attention, linear attention, shifted depthwise convolution.

Parameters are created in float32; `dtype` is the dtype that a layer computes in.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

Layer = TypeVar("Layer", bound=nnx.Module)

ROWS_OVER = ("slices", "data", "fsdp")  # axes of a training mesh (dim_jax/sharding.py) that the rows of a batch are spread over
QUERIES = 512  # at a time, where no flash kernel is at hand: scores of 4 pictures, 16 heads, 5476 keys take 0.7 GB then, not 7.7


def stack(make: Callable[[nnx.Rngs], Layer], depth: int, rngs: nnx.Rngs) -> Layer:
    """`depth` layers made by `make(rngs)`, each with its own random stream, as one module with a leading layer axis."""

    @nnx.split_rngs(splits=depth)
    @nnx.vmap(in_axes=0, out_axes=0)
    def build(rngs: nnx.Rngs) -> Layer:
        return make(rngs)

    return build(rngs)


def scan(
    layers: Layer, step: Callable[[Layer, Any, Any], tuple[Any, Any]], carry: Any, xs: Any = None, *, remat: bool = False
) -> tuple[Any, Any]:
    """Run stacked layers in order: `carry, y = step(layer, carry, x)`, with `xs` and the returned `ys` stacked on axis 0.

    Compile time does not grow with depth. With `remat` the backward pass recomputes each layer from its carry.
    """
    graphdef, state = nnx.split(layers)

    def body(carry, layer):
        parameters, x = layer
        return step(nnx.merge(graphdef, parameters), carry, x)

    return jax.lax.scan(jax.checkpoint(body) if remat else body, carry, (state, xs))


def rows(x: Float[Array, "b *rest"]) -> Float[Array, "b *rest"]:
    """`x` with its first axis (rows or pictures of a batch) spread over the axes ROWS_OVER of the mesh that is set; as it is where none is.

    Said of what goes from layer to layer. Without it the compiler, which sees rows and the parameters' widths cut by the same mesh axis,
    may as well cut activations by width, and every device computes the whole batch.
    """
    if not set(ROWS_OVER) <= set(jax.sharding.get_abstract_mesh().axis_names):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(ROWS_OVER))


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
        y = sum((padded[:, i : i + h, j : j + w] * kernel[i, j] for i, j in shifts), start=jnp.zeros((), self.dtype))
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


def attention(
    q: Float[Array, "b t n k"],
    k: Float[Array, "b s m k"],
    v: Float[Array, "b s m k"],
    *,
    lengths: Int[Array, " b"] | None = None,
    causal: bool = False,
) -> Float[Array, "b t n k"]:
    """softmax(q k^T / sqrt(k)) v, each of the m key heads serving n/m query heads; softmax in float32, q's dtype out.

    `lengths` (at least 1): how many keys of each row count, from the left. `causal`: query j sees the keys up to j.
    On a GPU in half precision the flash kernel of cuDNN runs, elsewhere blocks of queries, so that memory is linear in t.
    """
    t, s = q.shape[1], k.shape[1]
    if t > 1 and q.dtype in (jnp.bfloat16, jnp.float16) and jax.default_backend() == "gpu":
        return jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=lengths, is_causal=causal, implementation="cudnn")
    counts = None if lengths is None else (jnp.arange(s) < lengths[:, None])[:, None, None]

    def block(first: Int[Array, ""], q: Float[Array, "b queries n k"]) -> Float[Array, "b queries n k"]:
        mask = counts
        if causal:
            past = jnp.arange(s) <= first + jnp.arange(q.shape[1])[:, None]
            mask = past[None, None] if counts is None else past & counts
        return jax.nn.dot_product_attention(q, k, v, mask=mask)

    if t <= QUERIES:
        return block(jnp.int32(0), q)
    blocks = -(-t // QUERIES)
    padded = jnp.pad(q, ((0, 0), (0, blocks * QUERIES - t), (0, 0), (0, 0)))
    queries = padded.reshape(q.shape[0], blocks, QUERIES, *q.shape[2:]).swapaxes(0, 1)
    out = jax.lax.map(lambda x: block(*x), (QUERIES * jnp.arange(blocks, dtype=jnp.int32), queries))
    return out.swapaxes(0, 1).reshape(padded.shape)[:, :t]
