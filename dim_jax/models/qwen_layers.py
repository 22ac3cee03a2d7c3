"""What the vision tower and the text decoder of Qwen2.5-VL share: attention, rotary embedding, gated MLP."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

QUERIES = 512  # at a time, where no flash kernel is at hand: scores of 4 pictures, 16 heads, 5476 keys take 0.7 GB then, not 7.7


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


def frequencies(count: int, theta: float) -> Float[np.ndarray, " count"]:
    """Angle per position of each rotated pair, theta^(-i/count) (RoFormer, arXiv 2104.09864)."""
    return (1.0 / theta ** (np.arange(count, dtype=np.float32) / np.float32(count))).astype(np.float32)


def rotate(x: Float[Array, "b t n k"], angles: Float[Array, "b t half"]) -> Float[Array, "b t n k"]:
    """Rotate each pair (x_j, x_{j + k/2}) by its angle (radians), in float32; x's dtype out."""
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


class GatedMLP(nnx.Module):
    """down(silu(gate(x)) * up(x)), of inner width f (SwiGLU, arXiv 2002.05202)."""

    def __init__(self, d: int, f: int, *, use_bias: bool, dtype: DTypeLike, rngs: nnx.Rngs):
        self.gate_proj = nnx.Linear(d, f, use_bias=use_bias, dtype=dtype, rngs=rngs)
        self.up_proj = nnx.Linear(d, f, use_bias=use_bias, dtype=dtype, rngs=rngs)
        self.down_proj = nnx.Linear(f, d, use_bias=use_bias, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))


def rms_norm(d: int, eps: float, rngs: nnx.Rngs) -> nnx.RMSNorm:
    """RMSNorm (arXiv 1910.07467) in float32, float32 out: the projection behind it goes back to the compute dtype."""
    return nnx.RMSNorm(d, epsilon=eps, dtype=jnp.float32, rngs=rngs)
