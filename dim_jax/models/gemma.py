"""Gemma 2 (arXiv 2408.00118), without its head: the text encoder of SANA.

Rows are padded on the right, so with causal attention no token sees padding and no mask is needed. Attributes are named as published.
"""

from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from dim_jax.errors import check
from dim_jax.models import layers
from dim_jax.models.hf_config import HFConfig, Source
from dim_jax.models.precision import exact_products
from dim_jax.models.qwen_layers import DTYPES, GatedMLP, frequencies, rotate
from dim_jax.processing.inputs import EncoderInputs


@dataclass(frozen=True)
class GemmaConfig:
    """Sizes of a Gemma 2, by transformers' names. `dtype` is that of the published tensors, not of computation.

    Raises:
        InputError: the sizes contradict each other; the message names the key.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    query_pre_attn_scalar: int = 256
    sliding_window: int = 4096
    attn_logit_softcapping: float = 50.0
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    dtype: str = "float32"

    def __post_init__(self):
        n, m = self.num_attention_heads, self.num_key_value_heads
        for key, value in asdict(self).items():
            check(isinstance(value, str) or value > 0, f"{key} is {value}, must be positive.")
        check(n % m == 0, f"num_attention_heads {n} must be a multiple of num_key_value_heads ({m}).")
        check(self.dtype in DTYPES, f"dtype is {self.dtype!r}, but only {', '.join(DTYPES)} are supported.")

    @classmethod
    def gemma_2b(cls) -> "GemmaConfig":
        """Gemma-2-2B-it, the encoder of the published SANA models."""
        return cls(256000, 2304, 9216, 26, 8, 4, 256, dtype="bfloat16")

    @classmethod
    def from_hf(cls, source: Source) -> "GemmaConfig":
        """From transformers' config.json (a path, or its values).

        Raises:
            InputError: the file cannot be read, a key is missing or wrong, or the model is of a kind that is not supported.
        """
        values = HFConfig(source, "config.json")
        values.only("model_type", "gemma2")
        values.only("hidden_activation", "gelu_pytorch_tanh")
        values.only("attention_bias", False)
        values.only("use_bidirectional_attention", False)
        rope = values.child("rope_parameters")
        rope.only("rope_type", "default")
        dtype = values.get("dtype", str, values.get("torch_dtype", str, "float32"))
        return HFConfig({**values.values, **rope.values}, values.name).build(cls, dtype=dtype)

    def to_hf(self) -> dict[str, Any]:
        """The values of a config.json that transformers' `Gemma2Model` loads; `from_hf` reads it back."""
        sizes = asdict(self)
        return {"architectures": ["Gemma2Model"], "model_type": "gemma2", **sizes, "torch_dtype": sizes.pop("dtype")}

    @property
    def head_counts(self) -> dict[str, int]:
        """Logical axis of the parameters -> how many heads it holds."""
        return {"text_heads": self.num_attention_heads, "kv_heads": self.num_key_value_heads}


class RMSNorm(nnx.Module):
    """RMSNorm (arXiv 1910.07467) whose published weight is the distance from 1; in and out float32."""

    def __init__(self, d: int, eps: float):
        self.scale, self.eps = nnx.Param(jnp.zeros(d)), eps

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        return layers.rms_norm(x.astype(jnp.float32), 1 + self.scale[...].astype(jnp.float32), self.eps)


class Attention(nnx.Module):
    """Grouped-query attention whose scores are capped: cap * tanh(score / cap)."""

    def __init__(self, config: GemmaConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        d, self.config = config.hidden_size, config
        d_queries, d_keys = (heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads))
        self.q_proj = nnx.Linear(d, d_queries, use_bias=False, dtype=dtype, rngs=rngs)
        self.k_proj = nnx.Linear(d, d_keys, use_bias=False, dtype=dtype, rngs=rngs)
        self.v_proj = nnx.Linear(d, d_keys, use_bias=False, dtype=dtype, rngs=rngs)
        self.o_proj = nnx.Linear(d_queries, d, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b t d"], angles: Float[Array, "b t half"], mask: Bool[Array, "t t"]) -> Float[Array, "b t d"]:
        b, t, _ = x.shape
        q, k, v = (proj(x).reshape(b, t, -1, self.config.head_dim) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q = rotate(q, angles).reshape(b, t, self.config.num_key_value_heads, -1, self.config.head_dim)
        cap, scale = self.config.attn_logit_softcapping, self.config.query_pre_attn_scalar**-0.5
        scores = scale * jnp.einsum("btmgk,bsmk->bmgts", q, rotate(k, angles), preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(jnp.where(mask, cap * jnp.tanh(scores / cap), -jnp.inf), axis=-1).astype(v.dtype)
        return self.o_proj(jnp.einsum("bmgts,bsmk->btmgk", weights, v).reshape(b, t, -1))


class Layer(nnx.Module):
    def __init__(self, config: GemmaConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        d, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(d, eps), RMSNorm(d, eps)
        self.pre_feedforward_layernorm, self.post_feedforward_layernorm = RMSNorm(d, eps), RMSNorm(d, eps)
        self.self_attn = Attention(config, dtype=dtype, rngs=rngs)
        self.mlp = GatedMLP(d, config.intermediate_size, use_bias=False, activation=_gelu, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b t d"], angles: Float[Array, "b t half"], mask: Bool[Array, "t t"]) -> Float[Array, "b t d"]:
        x = x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), angles, mask)).astype(x.dtype)
        return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x))).astype(x.dtype)


class GemmaText(nnx.Module):
    """The decoder; every other layer, the first among them, sees the last `sliding_window` tokens only."""

    def __init__(self, config: GemmaConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.embed_tokens = nnx.Embed(config.vocab_size, config.hidden_size, rngs=rngs)
        self.layers = layers.stack(lambda rngs: Layer(config, dtype=dtype, rngs=rngs), config.num_hidden_layers, rngs)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Gemma(nnx.Module):
    """The encoder: the last hidden state of every token."""

    def __init__(self, config: GemmaConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.config, self.dtype = config, dtype
        self.model = GemmaText(config, dtype=dtype, rngs=rngs)

    @exact_products
    def __call__(self, inputs: EncoderInputs) -> Float[Array, "b t d"]:
        """The last hidden state of every token, after the final norm. States of padding mean nothing."""
        config, ids = self.config, jnp.asarray(inputs.input_ids)
        b, t = ids.shape
        x = self.model.embed_tokens.embedding[...][ids].astype(self.dtype) * jnp.asarray(config.hidden_size**0.5, self.dtype)
        distance = np.arange(t)[:, None] - np.arange(t)
        angles = jnp.broadcast_to(
            np.arange(t, dtype=np.float32)[:, None] * frequencies(config.head_dim // 2, config.rope_theta), (b, t, config.head_dim // 2)
        )
        masks = jnp.stack([jnp.asarray((distance >= 0) & (distance < config.sliding_window)), jnp.asarray(distance >= 0)])

        def step(layer: Layer, x: Array, i: Array) -> tuple[Array, None]:
            return layer(layers.shard_batch(x), angles, masks[i % 2]), None

        x, _ = layers.scan(self.model.layers, step, x, jnp.arange(config.num_hidden_layers))
        return self.model.norm(x).astype(self.dtype)


def _gelu(x: Float[Array, "*b f"]) -> Float[Array, "*b f"]:
    return jax.nn.gelu(x, approximate=True)
