"""The text decoder of Qwen2.5-VL and Qwen3-VL: grouped-query attention with three-axis rotary positions (mRoPE), RMSNorm, gated MLP.

Rows are padded on the right, so with causal attention no token sees padding and no mask is needed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from dim_jax.errors import check
from dim_jax.models import fused, layers
from dim_jax.models.hf_config import HFConfig
from dim_jax.models.precision import exact_products
from dim_jax.models.qwen_layers import GatedMLP, frequencies, rms_norm, rotate

QKV = tuple[Float[Array, "b t n k"], Float[Array, "b t m k"], Float[Array, "b t m k"]]


@dataclass(frozen=True)
class TextConfig:
    """Sizes of the decoder, by transformers' names. `mrope_section`: how many rotated pairs of a head follow time, row and column.

    Raises:
        InputError: the sizes contradict each other; the message names the key.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    rms_norm_eps: float
    rope_theta: float = 1000000.0
    mrope_section: tuple[int, ...] = (16, 24, 24)
    max_position_embeddings: int = 32768
    attention_bias: ClassVar[bool] = True  # of queries, keys and values
    qk_norm: ClassVar[bool] = False  # RMSNorm of each query and key

    def __post_init__(self):
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
        for key in (*sizes, "rms_norm_eps", "rope_theta", "max_position_embeddings"):
            check(getattr(self, key) > 0, f"{key} is {getattr(self, key)}, must be positive.")
        d, n, m = self.hidden_size, self.num_attention_heads, self.num_key_value_heads
        check(d % (2 * n) == 0, f"hidden_size {d} must be a multiple of 2 * num_attention_heads ({2 * n}).")
        check(n % m == 0, f"num_attention_heads {n} must be a multiple of num_key_value_heads ({m}).")
        fits = len(self.mrope_section) == 3 and sum(self.mrope_section) == self.head_dim // 2
        rule = f"must be three numbers (time, row, column) that add up to half of the head width {self.head_dim}"
        check(fits, f"mrope_section {list(self.mrope_section)} {rule}.")

    @classmethod
    def from_hf(cls, values: HFConfig) -> "TextConfig":
        """From a flat config.json or the `text_config` of a nested one.

        Raises:
            InputError: a key is missing, wrong or has a value that no published model has.
        """
        values.only("hidden_act", "silu")
        values.only("use_sliding_window", False)
        rope = values.child("rope_parameters" if "rope_parameters" in values else "rope_scaling")
        rope.only("rope_type", "default", "mrope")
        rope.only("type", "default", "mrope")
        config = {"num_key_value_heads": values.values.get("num_attention_heads"), **values.values, **rope.values}
        return HFConfig(config, values.name).build(cls)

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def rotary_axes(self) -> Int[np.ndarray, " half"]:
        """Which position rotates each pair of a head: time, row or column (Qwen2-VL, arXiv 2409.12191, figure 3)."""
        return np.repeat(np.arange(3), self.mrope_section)

    @property
    def head_counts(self) -> dict[str, int]:
        """Logical axis of the parameters -> how many heads it holds."""
        return {"text_heads": self.num_attention_heads, "kv_heads": self.num_key_value_heads}


class Cache(NamedTuple):
    """Keys and values of every layer; a row's tokens are at the left, the rest is not read."""

    keys: Float[Array, "layers b s m k"]
    values: Float[Array, "layers b s m k"]


class TextAttention(nnx.Module):
    def __init__(self, config: TextConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        d, self.head_dim = config.hidden_size, config.head_dim
        d_keys = config.num_key_value_heads * self.head_dim
        self.q_proj = nnx.Linear(d, d, use_bias=config.attention_bias, dtype=dtype, rngs=rngs)
        self.k_proj = nnx.Linear(d, d_keys, use_bias=config.attention_bias, dtype=dtype, rngs=rngs)
        self.v_proj = nnx.Linear(d, d_keys, use_bias=config.attention_bias, dtype=dtype, rngs=rngs)
        self.q_norm = rms_norm(self.head_dim, config.rms_norm_eps, rngs) if config.qk_norm else None
        self.k_norm = rms_norm(self.head_dim, config.rms_norm_eps, rngs) if config.qk_norm else None
        self.o_proj = nnx.Linear(d, d, use_bias=False, dtype=dtype, rngs=rngs)

    def qkv(self, x: Float[Array, "b t d"], angles: Float[Array, "b t half"]) -> QKV:
        """Queries and keys, rotated by their positions, and values."""
        q, k, v = (proj(x).reshape(*x.shape[:2], -1, self.head_dim) for proj in (self.q_proj, self.k_proj, self.v_proj))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q).astype(v.dtype), self.k_norm(k).astype(v.dtype)
        return rotate(q, angles), rotate(k, angles), v


class TextLayer(nnx.Module):
    def __init__(self, config: TextConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.input_layernorm = rms_norm(config.hidden_size, config.rms_norm_eps, rngs)
        self.post_attention_layernorm = rms_norm(config.hidden_size, config.rms_norm_eps, rngs)
        self.self_attn = TextAttention(config, dtype=dtype, rngs=rngs)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, use_bias=False, dtype=dtype, rngs=rngs)

    def qkv(self, x: Float[Array, "b t d"], angles: Float[Array, "b t half"]) -> QKV:
        """Queries, keys and values of the layer."""
        return self.self_attn.qkv(self.input_layernorm(x), angles)

    def output(self, x: Float[Array, "b t d"], attended: Float[Array, "b t n k"]) -> Float[Array, "b t d"]:
        """The layer's output from its input and what its heads attended to."""
        x = x + self.self_attn.o_proj(attended.reshape(x.shape))
        return x + self.mlp(self.post_attention_layernorm(x))


class QwenText(nnx.Module):
    """The decoder; it reads embeddings, so picture features may be among those of tokens."""

    def __init__(self, config: TextConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.config, self.dtype = config, dtype
        self.embed_tokens = nnx.Embed(config.vocab_size, config.hidden_size, rngs=rngs)
        self.layers = layers.stack(lambda rngs: TextLayer(config, dtype=dtype, rngs=rngs), config.num_hidden_layers, rngs)
        self.norm = rms_norm(config.hidden_size, config.rms_norm_eps, rngs)

    def embed(self, input_ids: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """Token embeddings. (Rows are gathered before the cast, so the whole table is never cast.)"""
        return self.embed_tokens.embedding[...][input_ids].astype(self.dtype)

    def __call__(
        self, x: Float[Array, "b t d"], position_ids: Int[Array, "3 b t"], deepstack: Float[Array, "first b t d"] | None = None
    ) -> Float[Array, "b t d"]:
        """The last hidden state, after the final norm. `deepstack` is added to the outputs of the first layers (arXiv 2406.04334)."""
        return self._run(x, position_ids, lambda x, k, v: None, deepstack)[0]

    def hidden_states(self, x: Float[Array, "b t d"], position_ids: Int[Array, "3 b t"]) -> Float[Array, "states b t d"]:
        """The embedding, then every layer's output; the last one after the final norm (transformers' `hidden_states`)."""
        last, outputs = self._run(x, position_ids, lambda x, k, v: x)
        return jnp.concatenate([x[None], outputs[:-1], last[None]])

    def prefill(self, x: Float[Array, "b t d"], position_ids: Int[Array, "3 b t"], capacity: int) -> tuple[Float[Array, "b t d"], Cache]:
        """The last hidden state, and a cache with `capacity` free slots after the tokens."""
        last, (keys, values) = self._run(x, position_ids, lambda x, k, v: (k, v))
        pad = ((0, 0), (0, 0), (0, capacity), (0, 0), (0, 0))
        return last, Cache(jnp.pad(keys, pad), jnp.pad(values, pad))

    @exact_products
    def decode(
        self, x: Float[Array, "b 1 d"], position_ids: Int[Array, "3 b 1"], slots: Int[Array, " b"], cache: Cache
    ) -> tuple[Float[Array, "b 1 d"], Cache]:
        """One more token a row, stored in slot `slots` of the cache; it attends to the slots up to its own."""
        angles, rows = self._angles(position_ids), jnp.arange(x.shape[0])

        def step(layer, carry, i):
            x, keys, values = carry
            q, k, v = layer.qkv(x, angles)
            keys, values = keys.at[i, rows, slots].set(k[:, 0]), values.at[i, rows, slots].set(v[:, 0])
            return (layer.output(x, fused.attention(q, keys[i], values[i], lengths=slots + 1)), keys, values), None

        carry = (x, cache.keys, cache.values)
        (x, keys, values), _ = layers.scan(self.layers, step, carry, jnp.arange(self.config.num_hidden_layers))
        return self.norm(x).astype(self.dtype), Cache(keys, values)

    @exact_products
    def _run(
        self, x: jax.Array, position_ids: jax.Array, select: Callable[..., Any], deepstack: jax.Array | None = None
    ) -> tuple[jax.Array, Any]:
        """The last hidden state, and `select(output, keys, values)` of each layer."""
        angles = self._angles(position_ids)

        def step(layer, x, i):
            x = layers.shard_batch(x)
            q, k, v = layer.qkv(x, angles)
            x = layer.output(x, fused.attention(q, k, v, causal=True))
            if deepstack is not None:
                x = x + jnp.where(i < len(deepstack), deepstack[jnp.minimum(i, len(deepstack) - 1)], 0).astype(x.dtype)
            return x, select(x, k, v)

        x, outputs = layers.scan(self.layers, step, x, None if deepstack is None else jnp.arange(self.config.num_hidden_layers))
        return self.norm(x).astype(self.dtype), outputs

    def _angles(self, position_ids: Int[Array, "3 b t"]) -> Float[Array, "b t half"]:
        """Each pair is rotated by the position on its axis."""
        return jnp.moveaxis(position_ids[self.config.rotary_axes], 0, -1).astype(jnp.float32) * frequencies(
            self.config.head_dim // 2, self.config.rope_theta
        )
