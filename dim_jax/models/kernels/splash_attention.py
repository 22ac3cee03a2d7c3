"""Softmax attention on TPUs by JAX's own splash kernel: scores stay in fast memory, forward and backward.

`models/fused.py` chooses between it and the formula. Here the kernel's conditions are met: heads before tokens, scaled queries, lengths
that are multiples of its blocks, and keys that do not count in a segment of their own. Up to `KEYS` keys of a head fit in fast memory; so
keys and values are read from memory once for each head, and else for each block of queries. The backward pass is one kernel instead of two.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jaxtyping import Array, Float, Int

QUERIES, KEYS, CAUSAL_KEYS, PRODUCT = 512, 4096, 1024, 512  # of a block, as large as the fast memory of v5p allows; keys of one product
LANES = 128  # what a number of keys must be a multiple of


def attention(
    q: Float[Array, "b t n k"],
    k: Float[Array, "b s m k"],
    v: Float[Array, "b s m k"],
    lengths: Int[Array, " b"] | None,
    causal: bool,
    interpret: bool,
) -> Float[Array, "b t n k"]:
    """`layers.attention`; the backward pass may save its results as "attention"."""
    t, s, n = q.shape[1], k.shape[1], q.shape[2]
    bq, product = min(QUERIES, _round_up(t, LANES)), min(PRODUCT, _round_up(s, LANES))
    bkv = _round_up(math.ceil(s / math.ceil(s / (CAUSAL_KEYS if causal else KEYS))), product)
    shape = _round_up(t, bq), _round_up(s, bkv)
    sizes = splash.BlockSizes(
        block_q=bq, block_kv=bkv, block_kv_compute=product, block_q_dkv=bq, block_kv_dkv=bkv, block_kv_dkv_compute=product,
        use_fused_bwd_kernel=True,
    )  # fmt: skip
    mask = splash.MultiHeadMask([splash.CausalMask(shape) if causal else splash.FullMask(shape)] * n)
    with jax.ensure_compile_time_eval():
        kernel = splash.make_splash_mha(
            mask, block_sizes=sizes, head_shards=1, q_seq_shards=1, residual_checkpoint_name="attention", interpret=interpret
        )
    heads = (_pad(x, size).swapaxes(1, 2) for x, size in zip((q * q.shape[-1] ** -0.5, k, v), (shape[0], shape[1], shape[1]), strict=True))
    segments = None
    if lengths is not None or (shape[1] > s and not causal):
        counts = jnp.full(len(q), s) if lengths is None else lengths
        is_key = jnp.arange(shape[1]) < counts[:, None]
        segments = splash.SegmentIds(jnp.ones((len(q), shape[0]), jnp.int32), is_key.astype(jnp.int32))
    return _call(kernel, *heads, segments).swapaxes(1, 2)[:, :t]


def _run(kernel: Any, q: Array, k: Array, v: Array, segments: Any) -> Float[Array, "b n t k"]:
    """The kernel's products are of bfloat16 with float32 sums; the compiler refuses one that asks for exact products of bfloat16."""
    with jax.default_matmul_precision("default"):
        return jax.vmap(kernel)(q, k, v, segments)


# Its own rules for gradients, because those of the kernel are traced later, when another precision may be set.
_call = jax.custom_vjp(_run, nondiff_argnums=(0,))


def _call_forward(kernel: Any, q: Array, k: Array, v: Array, segments: Any) -> tuple[Array, Any]:
    return jax.vjp(lambda q, k, v: _run(kernel, q, k, v, segments), q, k, v)


def _call_backward(kernel: Any, pullback: Any, change: Array) -> tuple[Any, ...]:
    with jax.default_matmul_precision("default"):
        return *pullback(change), None


_call.defvjp(_call_forward, _call_backward)


def _round_up(size: int, to: int) -> int:
    return math.ceil(size / to) * to


def _pad(x: Float[Array, "b t n k"], size: int) -> Float[Array, "b size n k"]:
    return jnp.pad(x, ((0, 0), (0, size - x.shape[1]), (0, 0), (0, 0)))
