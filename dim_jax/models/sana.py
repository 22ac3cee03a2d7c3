"""SANA 1.5: a diffusion transformer with linear attention that predicts the flow's velocity in the autoencoder's latent space.

Source: SANA (arXiv 2410.10629), SANA 1.5 (arXiv 2501.18427). The edit form of Draw-In-Mind (arXiv 2509.01986) is the same network
with the source latents concatenated to the noisy ones on channels. Attributes are named as in the published checkpoints.
"""

from dataclasses import asdict, dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from dim_jax.errors import InputError
from dim_jax.models import layers
from dim_jax.models.hf_config import HFConfig
from dim_jax.paths import AnyPath

# In numpy, because the last bit counts: at timestep 1000 XLA's exp moves an angle by 1e-4.
_FREQUENCIES = np.exp((np.float32(-np.log(10000)) * np.arange(128, dtype=np.float32) / np.float32(128)).astype(np.float64)).astype(
    np.float32
)


@dataclass(frozen=True)
class SanaConfig:
    """Sizes of one SANA; `in_channels` is `latent_channels` for text to image and twice that for edits."""

    in_channels: int
    latent_channels: int
    width: int
    depth: int
    cross_heads: int
    linear_head_dim: int
    caption_channels: int
    condition_length: int
    mlp_ratio: float = 2.5

    @classmethod
    def sana_1600m(cls, *, edit: bool = False, condition_length: int = 8192) -> "SanaConfig":
        """SANA1.5-1.6B as Draw-In-Mind trains it."""
        return cls(64 if edit else 32, 32, 2240, 20, 20, 32, 2304, condition_length)

    @classmethod
    def nano(cls, *, edit: bool = False, condition_length: int = 256) -> "SanaConfig":
        """6.3 M parameters for latents of 16 channels; trained on emoji (docs/nano.md)."""
        return cls(32 if edit else 16, 16, 256, 6, 4, 32, 256, condition_length, mlp_ratio=2.0)

    @classmethod
    def tiny(cls, *, edit: bool = False, condition_length: int = 256) -> "SanaConfig":
        """0.2 M parameters for the tiny autoencoder's 8 channels, for tests."""
        return cls(16 if edit else 8, 8, 64, 2, 2, 32, 48, condition_length)

    @classmethod
    def from_json(cls, source: AnyPath | dict) -> "SanaConfig":
        """Read `sana_edit.json` or `sana_t2i.json`: the sizes under "config", the input channels beside it.

        Raises:
            InputError: the file is no JSON, a key is missing, unknown or of another kind, or the sizes do not fit together.
        """
        read = HFConfig(source, "the SANA config")
        sizes = read.child("config")
        if unknown := sorted(set(sizes.values) - set(cls.__annotations__)):
            raise InputError(f"{sizes.name}: unknown keys {', '.join(unknown)}. Expected are {', '.join(list(cls.__annotations__)[1:])}.")
        config = sizes.build(cls, in_channels=read.get("in_channels", int))
        wrong = {key: value for key, value in asdict(config).items() if value <= 0}
        if wrong or config.in_channels not in (config.latent_channels, 2 * config.latent_channels):
            raise InputError(
                f"{read.name}: {wrong or 'in_channels'}: sizes are positive and in_channels is latent_channels ({config.latent_channels}) "
                "or twice that."
            )
        if config.width % config.cross_heads or config.width % config.linear_head_dim:
            raise InputError(
                f"{read.name}: width {config.width} does not divide into {config.cross_heads} cross_heads and heads of "
                f"linear_head_dim {config.linear_head_dim}."
            )
        return config

    def to_json(self) -> dict:
        """What `from_json` reads."""
        sizes = asdict(self)
        return {"in_channels": sizes.pop("in_channels"), "config": sizes}

    def grown(self, *, edit: bool, condition_length: int) -> "SanaConfig":
        """The sizes of a larger form: source channels for edits, more rows of the null table.

        Raises:
            InputError: the model would shrink.
        """
        if self.is_edit > edit or condition_length < self.condition_length:
            raise InputError(
                f"SANA with {self.in_channels} input channels and {self.condition_length} null rows cannot shrink to edit={edit} and "
                f"{condition_length} rows. Ask for at least what it has."
            )
        return replace(self, in_channels=self.latent_channels * (1 + edit), condition_length=condition_length)

    @property
    def is_edit(self) -> bool:
        """Whether the network reads source latents."""
        return self.in_channels == 2 * self.latent_channels


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Condition:
    """Keys and values of every block's cross-attention: they do not change over the sampler's steps. L blocks.

    `mask` is True for the real tokens, which come first in every row: at least one.
    """

    keys: Float[Array, "L b t n k"]
    values: Float[Array, "L b t n k"]
    mask: Bool[Array, "b t"]

    def spread(self, mask: Bool[Array, "b t"]) -> "Condition":
        """This single condition for every row of `mask`, masked by it."""
        keys, values = (jnp.broadcast_to(x, (x.shape[0], len(mask), *x.shape[2:])) for x in (self.keys, self.values))
        return Condition(keys, values, mask)

    def __add__(self, other: "Condition") -> "Condition":
        """Both batches as one, `self` first."""
        join = jnp.concatenate
        return Condition(join([self.keys, other.keys], 1), join([self.values, other.values], 1), join([self.mask, other.mask], 0))


class LinearAttention(nnx.Module):
    """Self-attention over latent tokens with ReLU kernels; queries and keys are normalised over the full width."""

    def __init__(self, d: int, head_dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.qkv = nnx.Linear(d, 3 * d, use_bias=False, dtype=dtype, rngs=rngs)
        self.q_norm = nnx.RMSNorm(d, epsilon=1e-5, dtype=dtype, rngs=rngs)
        self.k_norm = nnx.RMSNorm(d, epsilon=1e-5, dtype=dtype, rngs=rngs)
        self.proj = nnx.Linear(d, d, dtype=dtype, rngs=rngs)
        self.head_dim = head_dim

    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        q, k, v = jnp.split(self.qkv(x), 3, -1)
        q, k, v = (_heads(y, self.head_dim) for y in (self.q_norm(q), self.k_norm(k), v))
        return self.proj(layers.linear_attention(q, k, v, eps=1e-8).reshape(x.shape))


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
        k, v = jnp.split(self.kv_linear(y), 2, -1)
        return _heads(self.k_norm(k), self.head_dim), _heads(v, self.head_dim)

    def __call__(
        self, x: Float[Array, "b l d"], keys: Float[Array, "b t n k"], values: Float[Array, "b t n k"], mask: Bool[Array, "b t"]
    ) -> Float[Array, "b l d"]:
        q = _heads(self.q_norm(self.q_linear(x)), self.head_dim)
        return self.proj(layers.attention(q, keys, values, lengths=mask.sum(1)).reshape(x.shape))


class GatedConvMLP(nnx.Module):
    """The Mix-FFN of SANA: widen, 3x3 depthwise convolution, gate with SiLU, narrow."""

    def __init__(self, d: int, ratio: float, *, dtype: DTypeLike, rngs: nnx.Rngs):
        f = int(d * ratio)
        self.inverted_conv = nnx.Linear(d, 2 * f, dtype=dtype, rngs=rngs)
        self.depth_conv = layers.DepthwiseConv(2 * f, dtype=dtype, rngs=rngs)
        self.point_conv = nnx.Linear(f, d, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        x, gate = jnp.split(self.depth_conv(jax.nn.silu(self.inverted_conv(x))), 2, -1)
        return self.point_conv(x * jax.nn.silu(gate))


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
        self.t_block = nnx.Linear(d, 6 * d, dtype=dtype, rngs=rngs)
        self.y_embedder = ConditionEmbedder(config, dtype=dtype, rngs=rngs)
        # SANA starts this norm's weight at 0.01; the factor lives in the weight and is never applied again.
        self.attention_y_norm = nnx.RMSNorm(d, epsilon=1e-5, dtype=dtype, scale_init=nnx.initializers.constant(0.01), rngs=rngs)
        self.blocks = layers.stack(lambda rngs: Block(config, dtype=dtype, rngs=rngs), config.depth, rngs)
        self.final_layer = FinalLayer(d, config.latent_channels, dtype=dtype, rngs=rngs)
        self.config = config

    def encode_condition(self, condition: Float[Array, "b t c"], mask: Bool[Array, "b t"]) -> Condition:
        """Keys and values of condition tokens (the connector's output) for every block; padding, on the right, has mask False."""
        y = layers.rows(self.attention_y_norm(self.y_embedder(condition)))
        _, (keys, values) = layers.scan(self.blocks, lambda block, carry, _: (carry, block.cross_attn.keys_values(y)), None)
        return Condition(keys, values, mask)

    def null_condition(self, mask: Bool[Array, "b t"]) -> Condition:
        """The learned null condition, as long as `mask` and masked like it (Draw-In-Mind masks both branches alike)."""
        null = self.y_embedder.y_embedding[...][None, : mask.shape[1]]
        return self.encode_condition(null, jnp.ones(null.shape[:2], bool)).spread(mask)

    def drop_condition(self, condition: Float[Array, "b t c"], drop: Bool[Array, " b"]) -> Float[Array, "b t c"]:
        """Condition tokens with whole rows replaced by the null table, for training with condition dropout."""
        null = self.y_embedder.y_embedding[...][: condition.shape[1]].astype(condition.dtype)
        return jnp.where(drop[:, None, None], null, condition)

    def drop_source(self, source: Float[Array, "b h w c"], drop: Bool[Array, " b"]) -> Float[Array, "b h w c"]:
        """Source latents with whole rows replaced by zeros, which is what the network sees where there is no source: so a dropped source
        is text to image, which an edit model grew from and may go on learning."""
        return jnp.where(drop[:, None, None, None], 0, source)

    def __call__(
        self,
        latents: Float[Array, "b h w c"],
        timestep: Float[Array, " b"],
        condition: Condition,
        source: Float[Array, "b h w c"] | None = None,
        *,
        remat: bool = False,
    ) -> Float[Array, "b h w c"]:
        """Velocity (noise - data) at `timestep` in [0, 1000] (`flow.model_timestep`), float32.

        `source` are the latents of the picture to edit; an edit model without them paints from the text alone (zeros).
        """
        if self.config.is_edit:
            latents = jnp.concatenate([latents, jnp.zeros_like(latents) if source is None else source], -1)
        x = self.x_embedder(latents)
        time = layers.rows(self.t_embedder(layers.rows(timestep)))
        modulation = layers.rows(self.t_block(jax.nn.silu(time)).reshape(len(time), 6, -1))

        def step(block: Block, x: Array, keys_values: tuple[Array, Array]) -> tuple[Array, None]:
            return block(layers.rows(x), modulation, *keys_values, condition.mask), None

        x, _ = layers.scan(self.blocks, step, x, (condition.keys, condition.values), remat=remat)
        return self.final_layer(x, time).astype(jnp.float32)


def grow(sana: Sana, *, edit: bool, condition_length: int, key: PRNGKeyArray) -> Sana:
    """The same weights in a larger form: text to image becomes edit, the null table gets more rows. It computes what it did before.

    Channels of the source latents start at zero; old rows of the null table stay, new ones are drawn as at the start of training.

    Raises:
        InputError: the model would shrink.
    """
    old, config = sana.config, sana.config.grown(edit=edit, condition_length=condition_length)
    graphdef, state = nnx.split(sana)
    larger = nnx.merge(graphdef, state)
    kernel, null = sana.x_embedder.proj.kernel[...], sana.y_embedder.y_embedding[...]
    source = jnp.zeros((config.in_channels - old.in_channels, config.width), kernel.dtype)
    rows = _null_rows(key, condition_length - old.condition_length, config.caption_channels).astype(null.dtype)
    larger.x_embedder.proj.kernel = nnx.Param(jnp.concatenate([kernel, source]))
    larger.y_embedder.y_embedding = nnx.Param(jnp.concatenate([null, rows]))
    larger.config = config
    return larger


def _null_rows(key: PRNGKeyArray, t: int, c: int) -> Float[Array, "t c"]:
    return jax.random.normal(key, (t, c)) / c**0.5


def _heads(x: Float[Array, "b t d"], head_dim: int) -> Float[Array, "b t n k"]:
    return x.reshape(*x.shape[:2], -1, head_dim)
