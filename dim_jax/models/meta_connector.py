"""VIBE's connector: learned queries, which the encoder reads after the turn, and a transformer that projects their states."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dim_jax.models import layers
from dim_jax.models.precision import exact_products
from dim_jax.processing.inputs import EncoderInputs

META_LAYERS, META_HEADS = 4, 16  # of every published VIBE


class MetaLayer(nnx.Module):
    """Self-attention of all tokens, then a gated MLP, each after a LayerNorm and added to its input."""

    def __init__(self, d: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.input_norm = nnx.LayerNorm(d, epsilon=1e-5, use_fast_variance=False, dtype=dtype, rngs=rngs)
        self.output_norm = nnx.LayerNorm(d, epsilon=1e-5, use_fast_variance=False, dtype=dtype, rngs=rngs)
        self.in_proj, self.out_proj = nnx.Linear(d, 3 * d, dtype=dtype, rngs=rngs), nnx.Linear(d, d, dtype=dtype, rngs=rngs)
        self.fc1, self.fc3 = nnx.Linear(d, 4 * d, dtype=dtype, rngs=rngs), nnx.Linear(d, 4 * d, dtype=dtype, rngs=rngs)
        self.fc2 = nnx.Linear(4 * d, d, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        q, k, v = jnp.unstack(self.in_proj(self.input_norm(x)).reshape(*x.shape[:2], 3, META_HEADS, -1), axis=2)
        x = x + self.out_proj(layers.attention(q, k, v).reshape(x.shape))
        y = self.output_norm(x)
        return x + self.fc2(jax.nn.silu(self.fc1(y)) * self.fc3(y))


class MetaConnector(nnx.Module):
    """Condition tokens from the states of learned queries, which the encoder reads after the turn: Linear, transformer, LayerNorm, Linear.

    Source: VIBE (arXiv 2601.02242), `meta_queries` and `edit_head` of its transformer. What it makes of zeros stands for no prompt.
    """

    def __init__(self, d_encoder: int, d: int, length: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.meta_queries = nnx.Param(jax.random.normal(rngs.params(), (length, d_encoder)) / d_encoder**0.5)
        self.input_proj = nnx.Linear(d_encoder, d_encoder, dtype=dtype, rngs=rngs)
        self.blocks = layers.stack(lambda rngs: MetaLayer(d_encoder, dtype=dtype, rngs=rngs), META_LAYERS, rngs)
        self.norm = nnx.LayerNorm(d_encoder, epsilon=1e-5, use_fast_variance=False, dtype=dtype, rngs=rngs)
        self.output_proj = nnx.Linear(d_encoder, d, dtype=dtype, rngs=rngs)

    def read(self, encoder: Any, inputs: EncoderInputs) -> Float[Array, "b t d_encoder"]:
        return encoder(inputs, self.meta_queries[...])

    @exact_products
    def __call__(self, hidden: Float[Array, "b t d_encoder"]) -> Float[Array, "b t d"]:
        x = self.input_proj(hidden + self.meta_queries[...].astype(hidden.dtype))
        x, _ = layers.scan(self.blocks, lambda block, x, _: (block(layers.shard_batch(x)), None), x)
        return self.output_proj(self.norm(x))

    def null(self) -> Float[Array, "1 t d"]:
        return self(jnp.zeros_like(self.meta_queries[...])[None])
