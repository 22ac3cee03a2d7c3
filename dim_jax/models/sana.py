"""SANA 1.5: a diffusion transformer with linear attention that predicts the flow's velocity in the autoencoder's latent space.

Source: SANA (arXiv 2410.10629), SANA 1.5 (arXiv 2501.18427). The edit form of Draw-In-Mind (arXiv 2509.01986) is the same network
with the source latents concatenated to the noisy ones on channels. Attributes are named as in the published checkpoints.
"""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from dim_jax.models import fused, layers
from dim_jax.models.float8 import convert_block
from dim_jax.models.precision import exact_products
from dim_jax.models.sana_config import GUIDANCE_EMBEDS_SCALE, SanaConfig

# In numpy, because the last bit counts: at timestep 1000 XLA's exp moves an angle by 1e-4.
_FREQUENCIES = np.exp((np.float32(-np.log(10000)) * np.arange(128, dtype=np.float32) / np.float32(128)).astype(np.float64)).astype(
    np.float32
)

# The results of a block that are saved for its backward pass, by `model.remat`: all; those of all products; those as narrow as the network;
# none but the block's input. `checkpoint_name` gives the names; "attention" is the flash kernel's.
Remat = Literal["none", "products", "narrow", "all"]
_NARROW = frozenset({"linear_attention", "attn_out", "q", "cross_out", "mlp_out", "attention"})
SAVED_NAMES: dict[Remat, frozenset[str] | None] = {
    "none": None,
    "products": _NARROW - {"linear_attention"} | {"qkv", "kv", "inverted"},
    "narrow": _NARROW,
    "all": frozenset(),
}
# Layers of a block whose columns are so many results beside each other (`Sharding.gather`).
SIDE_BY_SIDE = {"attn.qkv": 3, "cross_attn.kv_linear": 2, "mlp.inverted_conv": 2, "mlp.depth_conv": 2}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Condition:
    """Keys and values of every block's cross-attention: constant over the sampler's steps. L blocks.

    `mask` is True for the real tokens, which come first in every row: at least one.
    """

    keys: Float[Array, "L b t n k"]
    values: Float[Array, "L b t n k"]
    mask: Bool[Array, "b t"]

    def broadcast(self, mask: Bool[Array, "b t"]) -> "Condition":
        """This condition of one row, repeated for every row of `mask` and masked by it."""
        keys, values = (jnp.broadcast_to(x, (x.shape[0], len(mask), *x.shape[2:])) for x in (self.keys, self.values))
        return Condition(keys, values, mask)

    def interleave(self, *others: "Condition") -> "Condition":
        """Several batches as one, their rows by turns: the first of each, then the second of each."""
        parts = (self, *others)
        keys, values = (layers.interleave(*arrays, axis=1) for arrays in zip(*((part.keys, part.values) for part in parts), strict=True))
        return Condition(keys, values, layers.interleave(*(part.mask for part in parts)))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ConditionTokens:
    """The condition at SANA's width, from which every block computes its own keys and values. Training uses it: each condition is used
    once, and the keys and values of all blocks, saved for gradients, would take more memory than the rest (12 GB at 32 rows)."""

    tokens: Float[Array, "b t d"]
    mask: Bool[Array, "b t"]


class LinearAttention(nnx.Module):
    """Self-attention over latent tokens with ReLU kernels; queries and keys are normalised over the full width."""

    def __init__(self, d: int, head_dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.qkv = nnx.Linear(d, 3 * d, use_bias=False, dtype=dtype, rngs=rngs)
        self.q_norm = nnx.RMSNorm(d, epsilon=1e-5, dtype=dtype, rngs=rngs)
        self.k_norm = nnx.RMSNorm(d, epsilon=1e-5, dtype=dtype, rngs=rngs)
        self.proj = nnx.Linear(d, d, dtype=dtype, rngs=rngs)
        self.head_dim = head_dim

    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        qkv = checkpoint_name(fused.linear(self.qkv, x), "qkv")
        assert self.q_norm.scale is not None
        assert self.k_norm.scale is not None
        scales, eps = (self.q_norm.scale[...], self.k_norm.scale[...]), self.q_norm.epsilon
        y = fused.normed_linear_attention(qkv, *scales, head_dim=self.head_dim, norm_eps=eps, eps=1e-8)
        return checkpoint_name(self.proj(checkpoint_name(y, "linear_attention")), "attn_out")


class CrossAttention(nnx.Module):
    """Softmax attention from latent tokens to condition tokens."""

    def __init__(self, d: int, num_heads: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.q_linear = nnx.Linear(d, d, dtype=dtype, rngs=rngs)
        self.kv_linear = nnx.Linear(d, 2 * d, dtype=dtype, rngs=rngs)
        self.q_norm = nnx.RMSNorm(d, epsilon=1e-6, dtype=dtype, rngs=rngs)
        self.k_norm = nnx.RMSNorm(d, epsilon=1e-6, dtype=dtype, rngs=rngs)
        self.proj = nnx.Linear(d, d, dtype=dtype, rngs=rngs)
        self.head_dim = d // num_heads

    def keys_values(self, y: Float[Array, "b t d"]) -> tuple[Float[Array, "b t n k"], Float[Array, "b t n k"]]:
        """Keys and values of the projected condition tokens."""
        k, v = fused.split_linear(self.kv_linear, y, 2, "kv")
        return _heads(self.k_norm(k), self.head_dim), _heads(v, self.head_dim)

    def __call__(
        self, x: Float[Array, "b l d"], keys: Float[Array, "b t n k"], values: Float[Array, "b t n k"], mask: Bool[Array, "b t"]
    ) -> Float[Array, "b l d"]:
        q = _heads(self.q_norm(checkpoint_name(self.q_linear(x), "q")), self.head_dim)
        y = fused.attention(q, keys, values, lengths=mask.sum(1))
        return checkpoint_name(self.proj(y.reshape(x.shape)), "cross_out")


class GatedConvMLP(nnx.Module):
    """The Mix-FFN of SANA: widen, 3x3 depthwise convolution, gate with SiLU, narrow."""

    def __init__(self, d: int, ratio: float, *, dtype: DTypeLike, rngs: nnx.Rngs):
        f = int(d * ratio)
        self.inverted_conv = nnx.Linear(d, 2 * f, dtype=dtype, rngs=rngs)
        self.depth_conv = layers.DepthwiseConv(2 * f, dtype=dtype, rngs=rngs)
        self.point_conv = nnx.Linear(f, d, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        y = fused.inverted_gated_conv(x, self.inverted_conv, self.depth_conv)
        y = self.point_conv(y.reshape(len(y), -1, y.shape[-1]))  # tokens in one axis, as before the convolution
        return checkpoint_name(y, "mlp_out").reshape(x.shape)


class Block(nnx.Module):
    """Linear self-attention, cross-attention, gated convolution; the first and the last are modulated by the timestep."""

    def __init__(self, config: SanaConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        d = config.width
        self.norm1 = nnx.LayerNorm(d, epsilon=1e-6, use_bias=False, use_scale=False, use_fast_variance=False, dtype=dtype, rngs=rngs)
        self.norm2 = nnx.LayerNorm(d, epsilon=1e-6, use_bias=False, use_scale=False, use_fast_variance=False, dtype=dtype, rngs=rngs)
        self.attn = LinearAttention(d, config.linear_head_dim, dtype=dtype, rngs=rngs)
        self.cross_attn = CrossAttention(d, config.cross_heads, dtype=dtype, rngs=rngs)
        self.mlp = GatedConvMLP(d, config.mlp_ratio, dtype=dtype, rngs=rngs)
        self.scale_shift_table = nnx.Param(jax.random.normal(rngs.params(), (6, d)) / d**0.5)

    def __call__(
        self,
        x: Float[Array, "b h w d"],
        time: Float[Array, "b 6 d"],
        keys: Float[Array, "b t n k"],
        values: Float[Array, "b t n k"],
        mask: Bool[Array, "b t"],
    ) -> Float[Array, "b h w d"]:
        b, h, w, d = x.shape
        modulation = (self.scale_shift_table[...] + time)[:, :, None].astype(x.dtype)
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.unstack(modulation, axis=1)
        x = x.reshape(b, h * w, d)
        x = x + gate1 * self.attn(self.norm1(x) * (1 + scale1) + shift1)
        x = x + self.cross_attn(x, keys, values, mask)
        y = (self.norm2(x) * (1 + scale2) + shift2).reshape(b, h, w, d)
        return x.reshape(b, h, w, d) + gate2[:, None] * self.mlp(y)


Unrolled = tuple[list[Block], list[tuple[Array, Array]]]


class PatchEmbed(nnx.Module):
    """Latent channels to width; the patch is one latent pixel."""

    def __init__(self, c: int, d: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.proj = nnx.Linear(c, d, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        return self.proj(x)


class TimestepEmbedder(nnx.Module):
    """Cosines and sines of the timestep at 128 frequencies from 1 to 1/10000, then a SiLU MLP."""

    def __init__(self, d: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.fc1 = nnx.Linear(256, d, dtype=dtype, rngs=rngs)
        self.fc2 = nnx.Linear(d, d, dtype=dtype, rngs=rngs)

    def __call__(self, timestep: Float[Array, " b"]) -> Float[Array, "b d"]:
        angles = timestep[:, None] * _FREQUENCIES
        return self.fc2(jax.nn.silu(self.fc1(jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1))))


class ConditionProjection(nnx.Module):
    """Condition channels to width: Linear, tanh GELU, Linear."""

    def __init__(self, c: int, d: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.fc1 = nnx.Linear(c, d, dtype=dtype, rngs=rngs)
        self.fc2 = nnx.Linear(d, d, dtype=dtype, rngs=rngs)

    def __call__(self, y: Float[Array, "b t c"]) -> Float[Array, "b t d"]:
        return self.fc2(jax.nn.gelu(self.fc1(y), approximate=True))


class ConditionEmbedder(nnx.Module):
    """The projection and the learned null condition (`y_embedding`), a table of one row a position."""

    def __init__(self, config: SanaConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        c = config.caption_channels
        if config.null_table:
            self.y_embedding = nnx.Param(_null_rows(rngs.params(), config.condition_length, c))
        self.y_proj = ConditionProjection(c, config.width, dtype=dtype, rngs=rngs)

    def __call__(self, y: Float[Array, "b t c"]) -> Float[Array, "b t d"]:
        return self.y_proj(y)


class FinalLayer(nnx.Module):
    """Modulated norm and the projection to latent channels."""

    def __init__(self, d: int, c: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.norm_final = nnx.LayerNorm(d, epsilon=1e-6, use_bias=False, use_scale=False, use_fast_variance=False, dtype=dtype, rngs=rngs)
        self.linear = nnx.Linear(d, c, dtype=dtype, rngs=rngs)
        self.scale_shift_table = nnx.Param(jax.random.normal(rngs.params(), (2, d)) / d**0.5)

    def __call__(self, x: Float[Array, "b h w d"], time: Float[Array, "b d"]) -> Float[Array, "b h w c"]:
        modulation = (self.scale_shift_table[...] + time[:, None])[:, :, None, None].astype(x.dtype)
        shift, scale = jnp.unstack(modulation, axis=1)
        return self.linear(self.norm_final(x) * (1 + scale) + shift)


class Sana(nnx.Module):
    """The transformer. First `encode_condition` (once an image), then a call for each velocity."""

    def __init__(self, config: SanaConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        d = config.width
        self.x_embedder = PatchEmbed(config.in_channels, d, dtype=dtype, rngs=rngs)
        self.t_embedder = TimestepEmbedder(d, dtype=dtype, rngs=rngs)
        if config.guidance_embeds:
            self.guidance_embedder = TimestepEmbedder(d, dtype=dtype, rngs=rngs)
        self.t_block = nnx.Linear(d, 6 * d, dtype=dtype, rngs=rngs)
        self.y_embedder = ConditionEmbedder(config, dtype=dtype, rngs=rngs)
        # SANA starts this norm's weight at 0.01; the factor is part of the weight and is never applied again.
        self.attention_y_norm = nnx.RMSNorm(d, epsilon=1e-5, dtype=dtype, scale_init=nnx.initializers.constant(0.01), rngs=rngs)
        self.blocks = layers.stack(lambda rngs: Block(config, dtype=dtype, rngs=rngs), config.depth, rngs)
        self.final_layer = FinalLayer(d, config.velocities * config.latent_channels, dtype=dtype, rngs=rngs)
        self.config = config

    @exact_products
    def encode_condition(self, condition: Float[Array, "b t c"], mask: Bool[Array, "b t"]) -> Condition:
        """Keys and values of condition tokens (the connector's output) for every block; padding, on the right, has mask False."""
        y = self.embed_condition(condition, mask).tokens
        _, (keys, values) = layers.scan(self.blocks, lambda block, carry, _: (carry, block.cross_attn.keys_values(y)), None)
        return Condition(keys, values, mask)

    @exact_products
    def embed_condition(self, condition: Float[Array, "b t c"], mask: Bool[Array, "b t"]) -> ConditionTokens:
        """Condition tokens at the network's width; blocks compute their keys and values from them."""
        return ConditionTokens(layers.shard_batch(self.attention_y_norm(self.y_embedder(condition))), mask)

    def unroll(self, condition: Condition, *, float8: bool = False) -> Unrolled:
        """Single blocks and their keys and values, for a loop over steps (`layers.unstack` says when it is faster).

        `float8`: the large products of each block in float8 (`float8.LARGE_LAYERS`).
        """
        depth = self.config.depth
        blocks = layers.unstack(self.blocks, depth)
        for block in blocks if float8 else ():
            convert_block(block)
        return blocks, layers.unstack((condition.keys, condition.values), depth)

    def null_condition(self, mask: Bool[Array, "b t"]) -> Condition:
        """The learned null condition, as long as `mask` and masked like it (Draw-In-Mind masks both branches alike)."""
        null = self.y_embedder.y_embedding[...][None, : mask.shape[1]]
        return self.encode_condition(null, jnp.ones(null.shape[:2], bool)).broadcast(mask)

    def drop_condition(self, condition: Float[Array, "b t c"], drop: Bool[Array, " b"]) -> Float[Array, "b t c"]:
        """Condition tokens with whole rows replaced by the null table, for training with condition dropout."""
        null = self.y_embedder.y_embedding[...][: condition.shape[1]].astype(condition.dtype)
        return jnp.where(drop[:, None, None], null, condition)

    def drop_source(self, source: Float[Array, "b h w c"], drop: Bool[Array, " b"]) -> Float[Array, "b h w c"]:
        """Source latents with whole rows replaced by zeros, which mean "no source": a row with a dropped source is text to image, which an
        edit model has learned before and keeps learning."""
        return jnp.where(drop[:, None, None, None], 0, source)

    @exact_products
    def __call__(
        self,
        latents: Float[Array, "b h w c"],
        timestep: Float[Array, " b"],
        condition: Condition | ConditionTokens,
        source: Float[Array, "b h w c"] | None = None,
        *,
        guidance: Float[Array, " b"] | None = None,
        remat: Remat = "none",
        unrolled: Unrolled | None = None,
    ) -> Float[Array, "b h w {self.config.velocities}*c"]:
        """Velocity (noise - data) at `timestep` in [0, 1000] (`flow.model_timestep`), float32; or several, one after the other on channels.

        `source` are the latents of the picture to edit; an edit model without them generates from the text alone (zeros). `guidance` is the
        guidance scale, which a network with `guidance_embeds` needs, and no other.
        """
        return self._run(latents, timestep, condition, source, None, guidance, remat, unrolled)[0]

    @exact_products
    def with_hidden(
        self,
        latents: Float[Array, "b h w c"],
        timestep: Float[Array, " b"],
        condition: Condition | ConditionTokens,
        source: Float[Array, "b h w c"] | None = None,
        *,
        block: int,
        remat: Remat = "none",
    ) -> tuple[Float[Array, "b h w {self.config.velocities}*c"], Float[Array, "b h w d"]]:
        """The velocity, as of a call, and the hidden states after so many blocks, from 1 to all."""
        return self._run(latents, timestep, condition, source, block, None, remat, None)

    def _run(
        self,
        latents: Array,
        timestep: Array,
        condition: Condition | ConditionTokens,
        source: Array | None,
        kept_block: int | None,
        guidance: Array | None,
        remat: Remat,
        unrolled: Unrolled | None,
    ) -> tuple[Array, Any]:
        """The velocity, and the hidden states after `kept_block` blocks, or None."""
        if self.config.is_edit:
            latents = jnp.concatenate([latents, jnp.zeros_like(latents) if source is None else source], -1)
        x = self.x_embedder(latents)
        time = self.t_embedder(layers.shard_batch(timestep))
        if self.config.guidance_embeds:
            assert guidance is not None
            time = time + self.guidance_embedder(GUIDANCE_EMBEDS_SCALE * layers.shard_batch(guidance))
        time = layers.shard_batch(time)
        modulation = layers.shard_batch(self.t_block(jax.nn.silu(time)).reshape(len(time), 6, -1))

        def step(block: Block, carry: tuple[Array, Any], inputs: tuple[Any, Any]) -> tuple[tuple[Array, Any], None]:
            (x, kept), (keys_values, number) = carry, inputs
            if isinstance(condition, ConditionTokens):
                keys_values = block.cross_attn.keys_values(condition.tokens)
            keys, values = keys_values
            x = block(layers.shard_batch(x), modulation, keys, values, condition.mask)
            # Carried on, and not a result of each block, of which a scan would hold as many as there are blocks.
            return (x, None if kept is None else jnp.where(number == kept_block, x, kept)), None

        numbers = None if kept_block is None else jnp.arange(1, self.config.depth + 1)
        blocks, xs = self.blocks, ((condition.keys, condition.values) if isinstance(condition, Condition) else None, numbers)
        if unrolled is not None:
            blocks, xs = unrolled[0], [(keys_values, None) for keys_values in unrolled[1]]
        start = x, None if kept_block is None else jnp.zeros_like(x)
        (x, kept), _ = layers.scan(blocks, step, start, xs, remat=SAVED_NAMES[remat])
        return self.final_layer(x, time).astype(jnp.float32), kept


def grow(sana: Sana, *, edit: bool, condition_length: int, guidance_embeds: bool = False, velocities: int = 1, key: PRNGKeyArray) -> Sana:
    """The same weights in a larger form: text to image becomes edit, the null table gets more rows, the guidance scale becomes an input,
    there are more velocities. Its outputs stay the same.

    Channels of the source latents start at zero; old rows of the null table stay, new ones are initialized as for training. The last layer
    of the guidance scale's embedder starts at zero. Every velocity starts as the one that there was.

    Raises:
        InputError: the model would shrink, or takes the guidance scale as an input and no longer would.
    """
    sizes = {"edit": edit, "condition_length": condition_length, "guidance_embeds": guidance_embeds, "velocities": velocities}
    old, config = sana.config, sana.config.grow(**sizes)
    graphdef, state = nnx.split(sana)
    larger = nnx.merge(graphdef, state)
    kernel = sana.x_embedder.proj.kernel[...]
    null = [sana.y_embedder.y_embedding[...]] if old.null_table else []
    source = jnp.zeros((config.in_channels - old.in_channels, config.width), kernel.dtype)
    rows = _null_rows(key, condition_length - old.null_rows, config.caption_channels).astype(kernel.dtype)
    larger.x_embedder.proj.kernel = nnx.Param(jnp.concatenate([kernel, source]))
    larger.y_embedder.y_embedding = nnx.Param(jnp.concatenate([*null, rows]))
    if config.guidance_embeds and not old.guidance_embeds:
        embedder = TimestepEmbedder(config.width, dtype=sana.t_embedder.fc1.dtype or jnp.float32, rngs=nnx.Rngs(jax.random.fold_in(key, 1)))
        embedder.fc2.kernel[...] *= 0  # its bias is zero
        larger.guidance_embedder = embedder
    if config.velocities > old.velocities:
        last, copies = larger.final_layer.linear, config.velocities // old.velocities
        assert last.bias is not None
        last.kernel, last.bias = (nnx.Param(jnp.tile(param[...], copies)) for param in (last.kernel, last.bias))
        last.out_features *= copies
    larger.config = config
    return larger


def _null_rows(key: PRNGKeyArray, t: int, c: int) -> Float[Array, "t c"]:
    return jax.random.normal(key, (t, c)) / c**0.5


def _heads(x: Float[Array, "b t d"], head_dim: int) -> Float[Array, "b t n k"]:
    return x.reshape(*x.shape[:2], -1, head_dim)
