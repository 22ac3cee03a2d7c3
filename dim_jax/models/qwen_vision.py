"""The vision tower of Qwen2.5-VL (arXiv 2502.13923, section 2.1): pictures to features, one for every 2 x 2 patches.

Most layers attend inside windows of 112 pixels, a few over the whole picture. Axis letters as in `dim_jax.processing.inputs`.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from dim_jax.errors import check
from dim_jax.models import fused, layers
from dim_jax.models.hf_config import HFConfig
from dim_jax.models.precision import exact_products
from dim_jax.models.qwen_layers import GatedMLP, frequencies, rms_norm, rotate
from dim_jax.processing.inputs import EncoderInputs, VisionLayout, normalize

CHANNELS, THETA, EPS = 3, 10000.0, 1e-6  # the same in every published model


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of the vision tower, by transformers' names; defaults are transformers' for keys that a file may lack.

    Raises:
        InputError: the sizes contradict each other; the message names the key.
    """

    hidden_size: int
    intermediate_size: int
    num_heads: int
    out_hidden_size: int
    depth: int = 32
    fullatt_block_indexes: tuple[int, ...] = (7, 15, 23, 31)
    patch_size: int = 14
    spatial_merge_size: int = 2
    temporal_patch_size: int = 2
    window_size: int = 112
    tokens_per_second: int = 4  # of videos: only for export

    def __post_init__(self):
        sizes = ("hidden_size", "intermediate_size", "num_heads", "out_hidden_size", "depth", "patch_size")
        for key in (*sizes, "spatial_merge_size", "temporal_patch_size"):
            check(getattr(self, key) > 0, f"{key} is {getattr(self, key)}, must be positive.")
        rule = "must be a multiple of 4 * num_heads: its heads are rotated by row and column in pairs"
        check(self.hidden_size % (4 * self.num_heads) == 0, f"hidden_size {self.hidden_size} {rule} ({4 * self.num_heads}).")
        for block in self.fullatt_block_indexes:
            check(0 <= block < self.depth, f"fullatt_block_indexes has {block}, but depth is {self.depth}.")
        check(self.layout.window_units > 0, f"window_size {self.window_size} px is smaller than one merged patch.")

    @classmethod
    def published(cls, out_hidden_size: int) -> "VisionConfig":
        """The tower of the 3B (features of width 2048) and of the 7B (3584)."""
        return cls(1280, 3420, 16, out_hidden_size, tokens_per_second=2)

    @classmethod
    def from_hf(cls, values: HFConfig) -> "VisionConfig":
        """From the `vision_config` of a config.json.

        Raises:
            InputError: a key is missing, wrong or has a value that no published model has.
        """
        values.only("hidden_act", "silu")
        values.only("in_channels", CHANNELS)
        values.only("in_chans", CHANNELS)
        rope = values.child("rope_parameters")
        rope.only("rope_type", "axial")
        rope.only("rope_theta", THETA)
        return values.build(cls)

    @property
    def layout(self) -> VisionLayout:
        """How pictures are cut for this tower."""
        return VisionLayout(self.patch_size, self.spatial_merge_size, self.temporal_patch_size, self.window_size)


class PatchEmbed(nnx.Module):
    """A convolution whose stride is its kernel: a product with each patch's pixels (channel, time, row, column). `config`: of a tower."""

    def __init__(self, config: Any, *, use_bias: bool = False, dtype: DTypeLike, rngs: nnx.Rngs):
        pixels = (CHANNELS, config.temporal_patch_size, config.patch_size, config.patch_size)
        self.proj = nnx.LinearGeneral(pixels, config.hidden_size, axis=(-4, -3, -2, -1), use_bias=use_bias, dtype=dtype, rngs=rngs)

    def __call__(self, patches: Float[Array, "i p c"]) -> Float[Array, "i p d"]:
        return self.proj(patches.reshape(*patches.shape[:2], *self.proj.in_features))


class VisionAttention(nnx.Module):
    def __init__(self, config: VisionConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        d, self.num_heads = config.hidden_size, config.num_heads
        self.qkv = nnx.Linear(d, 3 * d, dtype=dtype, rngs=rngs)
        self.proj = nnx.Linear(d, d, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "i p d"], angles: Float[Array, "i p half"], inputs: EncoderInputs, full: Bool[Array, ""]
    ) -> Float[Array, "i p d"]:
        heads = self.qkv(x).reshape(*x.shape[:2], 3, self.num_heads, -1)
        q, k, v = heads[:, :, 0], heads[:, :, 1], heads[:, :, 2]
        # One compiled layer for both kinds of attention; only the layer's own kind runs.
        attended = jax.lax.cond(full, full_attention, window_attention, rotate(q, angles), rotate(k, angles), v, inputs)
        return self.proj(attended.reshape(x.shape))


def full_attention(
    q: Float[Array, "i p n k"], k: Float[Array, "i p n k"], v: Float[Array, "i p n k"], inputs: EncoderInputs
) -> Float[Array, "i p n k"]:
    """Every patch attends to its picture."""
    return fused.attention(q, k, v, lengths=_count(inputs.patch_mask))


def window_attention(
    q: Float[Array, "i p n k"], k: Float[Array, "i p n k"], v: Float[Array, "i p n k"], inputs: EncoderInputs
) -> Float[Array, "i p n k"]:
    """Every patch attends to its window: patches are gathered into windows, which are rows of a batch, and put back."""
    i, w, m = inputs.windows.shape
    q, k, v = (_gather(x, inputs.windows).reshape(i * w, m, *x.shape[2:]) for x in (q, k, v))
    attended = layers.attention(q, k, v, lengths=_count(inputs.window_mask).reshape(i * w))
    return _gather(attended.reshape(i, w * m, *q.shape[2:]), inputs.window_slots)


def _gather(x: Float[Array, "i from_ n k"], index: Int[Array, "i *to"]) -> Float[Array, "i *to n k"]:
    return jax.vmap(lambda x, index: x[index])(x, index)


def _count(mask: Bool[Array, "*rows m"]) -> Int[Array, "*rows"]:
    """Number of valid keys, at least 1: the softmax of an empty window, which no patch reads, stays finite."""
    return jnp.maximum(mask.sum(-1, dtype=jnp.int32), 1)


class VisionBlock(nnx.Module):
    def __init__(self, config: VisionConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.norm1 = rms_norm(config.hidden_size, EPS, rngs)
        self.norm2 = rms_norm(config.hidden_size, EPS, rngs)
        self.attn = VisionAttention(config, dtype=dtype, rngs=rngs)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, use_bias=True, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "i p d"], angles: Float[Array, "i p half"], inputs: EncoderInputs, full: Bool[Array, ""]
    ) -> Float[Array, "i p d"]:
        x = x + self.attn(self.norm1(x), angles, inputs, full)
        return x + self.mlp(self.norm2(x))


class PatchMerger(nnx.Module):
    """Each group of adjacent patches to one feature of the decoder's width: norm, concatenation, Linear, exact GELU, Linear."""

    def __init__(self, config: VisionConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.group = config.layout.group
        self.ln_q = rms_norm(config.hidden_size, EPS, rngs)
        self.fc1 = nnx.Linear(self.group * config.hidden_size, self.group * config.hidden_size, dtype=dtype, rngs=rngs)
        self.fc2 = nnx.Linear(self.group * config.hidden_size, config.out_hidden_size, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "i p d"]) -> Float[Array, "i g d_out"]:
        i, p, d = x.shape
        grouped = self.ln_q(x).reshape(i, p // self.group, self.group * d)
        return self.fc2(jax.nn.gelu(self.fc1(grouped), approximate=False))


class QwenVision(nnx.Module):
    """The tower. Features of padding patches are finite and meaningless; `picture_tokens` never names them."""

    def __init__(self, config: VisionConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.patch_embed = PatchEmbed(config, dtype=dtype, rngs=rngs)
        self.blocks = layers.stack(lambda rngs: VisionBlock(config, dtype=dtype, rngs=rngs), config.depth, rngs)
        self.merger = PatchMerger(config, dtype=dtype, rngs=rngs)

    @exact_products
    def __call__(self, inputs: EncoderInputs) -> Float[Array, "i g d_out"]:
        """Features of every picture; g = p / 4 groups of patches."""
        inputs = jax.tree.map(jnp.asarray, inputs)
        full = jnp.asarray(np.isin(np.arange(self.config.depth), self.config.fullatt_block_indexes))
        angles = axial_angles(inputs.patch_positions, self.config.hidden_size // self.config.num_heads)
        x = self.patch_embed(normalize(inputs.patches) if inputs.patches.dtype == jnp.uint8 else inputs.patches)
        x, _ = layers.scan(self.blocks, lambda block, x, full: (block(layers.shard_batch(x), angles, inputs, full), None), x, full)
        return self.merger(x)


def axial_angles(positions: Int[Array, "i p 2"], head_dim: int) -> Float[Array, "i p half"]:
    """Half of a head's pairs are rotated by the patch's row, the other half by its column."""
    return (positions.astype(jnp.float32)[..., None] * frequencies(head_dim // 4, THETA)).reshape(*positions.shape[:2], -1)
