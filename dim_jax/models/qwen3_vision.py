"""The vision tower of Qwen3-VL (arXiv 2511.21631): pictures to features, one for every 2 x 2 patches, from its end and from layers within.

Every layer attends over the whole picture. Axis letters as in `dim_jax.processing.inputs`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from dim_jax.errors import check
from dim_jax.models import layers
from dim_jax.models.hf_config import HFConfig
from dim_jax.models.precision import exact_products
from dim_jax.models.qwen_layers import rotate
from dim_jax.models.qwen_vision import CHANNELS, EPS, THETA, PatchEmbed, axial_angles, full_attention
from dim_jax.processing.inputs import EncoderInputs, VisionLayout


@dataclass(frozen=True)
class Qwen3VisionConfig:
    """Sizes of the vision tower, by transformers' names.

    Raises:
        InputError: the sizes contradict each other; the message names the key.
    """

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    out_hidden_size: int
    num_position_embeddings: int = 2304
    deepstack_visual_indexes: tuple[int, ...] = (5, 11, 17)
    patch_size: int = 16
    spatial_merge_size: int = 2
    temporal_patch_size: int = 2

    def __post_init__(self):
        sizes = ("depth", "hidden_size", "intermediate_size", "num_heads", "patch_size", "spatial_merge_size", "temporal_patch_size")
        for key in sizes:
            check(getattr(self, key) > 0, f"{key} is {getattr(self, key)}, must be positive.")
        rule = "must be a multiple of 4 * num_heads: its heads are rotated by row and column in pairs"
        check(self.hidden_size % (4 * self.num_heads) == 0, f"hidden_size {self.hidden_size} {rule} ({4 * self.num_heads}).")
        check(
            self.grid_side**2 == self.num_position_embeddings, f"num_position_embeddings {self.num_position_embeddings} must be a square."
        )
        for block in self.deepstack_visual_indexes:
            check(0 <= block < self.depth, f"deepstack_visual_indexes has {block}, but depth is {self.depth}.")

    @classmethod
    def from_hf(cls, values: HFConfig) -> "Qwen3VisionConfig":
        """From the `vision_config` of a config.json.

        Raises:
            InputError: a key is missing, wrong or has a value that no published model has.
        """
        values.only("hidden_act", "gelu_pytorch_tanh")
        values.only("in_channels", CHANNELS)
        rope = values.child("rope_parameters")
        rope.only("rope_type", "axial")
        rope.only("rope_theta", THETA)
        return values.build(cls)

    @property
    def grid_side(self) -> int:
        """Side of the square of learned positions."""
        return int(self.num_position_embeddings**0.5)

    @property
    def layout(self) -> VisionLayout:
        """How pictures are cut for this tower; it has no windows."""
        return VisionLayout(self.patch_size, self.spatial_merge_size, self.temporal_patch_size, self.patch_size * self.spatial_merge_size)


class Features(NamedTuple):
    """Features of every picture, g = p / 4 groups of patches: from the end of the tower, and from its deepstack layers."""

    last: Float[Array, "i g d_out"]
    deepstack: Float[Array, "layers i g d_out"]


class Attention(nnx.Module):
    def __init__(self, config: Qwen3VisionConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        d, self.num_heads = config.hidden_size, config.num_heads
        self.qkv = nnx.Linear(d, 3 * d, dtype=dtype, rngs=rngs)
        self.proj = nnx.Linear(d, d, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "i p d"], angles: Float[Array, "i p half"], inputs: EncoderInputs) -> Float[Array, "i p d"]:
        q, k, v = jnp.unstack(self.qkv(x).reshape(*x.shape[:2], 3, self.num_heads, -1), axis=2)
        return self.proj(full_attention(rotate(q, angles), rotate(k, angles), v, inputs).reshape(x.shape))


class MLP(nnx.Module):
    """Linear, GELU, Linear: the tanh GELU inside of blocks, the exact one in mergers."""

    def __init__(self, d_in: int, f: int, d_out: int, *, tanh: bool, dtype: DTypeLike, rngs: nnx.Rngs):
        self.linear_fc1, self.tanh = nnx.Linear(d_in, f, dtype=dtype, rngs=rngs), tanh
        self.linear_fc2 = nnx.Linear(f, d_out, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "i p d"]) -> Float[Array, "i p d_out"]:
        return self.linear_fc2(jax.nn.gelu(self.linear_fc1(x), approximate=self.tanh))


class Block(nnx.Module):
    def __init__(self, config: Qwen3VisionConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        d = config.hidden_size
        self.norm1, self.norm2 = _norm(d, rngs), _norm(d, rngs)
        self.attn = Attention(config, dtype=dtype, rngs=rngs)
        self.mlp = MLP(d, config.intermediate_size, d, tanh=True, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "i p d"], angles: Float[Array, "i p half"], inputs: EncoderInputs) -> Float[Array, "i p d"]:
        x = x + self.attn(self.norm1(x), angles, inputs)
        return x + self.mlp(self.norm2(x))


class PatchMerger(nnx.Module):
    """Each group of adjacent patches to one feature of the decoder's width; deepstack normalises after the concatenation, not before."""

    def __init__(self, config: Qwen3VisionConfig, *, deepstack: bool, dtype: DTypeLike, rngs: nnx.Rngs):
        self.group, self.deepstack = config.layout.group, deepstack
        wide = self.group * config.hidden_size
        self.norm = _norm(wide if deepstack else config.hidden_size, rngs)
        self.mlp = MLP(wide, wide, config.out_hidden_size, tanh=False, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "i p d"]) -> Float[Array, "i g d_out"]:
        i, p, d = x.shape
        x = x if self.deepstack else self.norm(x)
        x = x.reshape(i, p // self.group, self.group * d)
        return self.mlp(self.norm(x) if self.deepstack else x)


class Qwen3Vision(nnx.Module):
    """The tower. Features of padding patches are finite and meaningless; `picture_tokens` never names them."""

    def __init__(self, config: Qwen3VisionConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.patch_embed = PatchEmbed(config, use_bias=True, dtype=dtype, rngs=rngs)
        self.pos_embed = nnx.Embed(config.num_position_embeddings, config.hidden_size, rngs=rngs)
        self.blocks = layers.stack(lambda rngs: Block(config, dtype=dtype, rngs=rngs), config.depth, rngs)
        self.merger = PatchMerger(config, deepstack=False, dtype=dtype, rngs=rngs)
        self.deepstack_merger_list = layers.stack(
            lambda rngs: PatchMerger(config, deepstack=True, dtype=dtype, rngs=rngs), len(config.deepstack_visual_indexes), rngs
        )

    @exact_products
    def __call__(self, inputs: EncoderInputs) -> Features:
        inputs = jax.tree.map(jnp.asarray, inputs)
        # The processor's mean and standard deviation are 0.5 each.
        patches = inputs.patches.astype(jnp.float32) / 127.5 - 1 if inputs.patches.dtype == jnp.uint8 else inputs.patches
        angles = axial_angles(inputs.patch_positions, self.config.hidden_size // self.config.num_heads)
        x = self.patch_embed(patches)
        x = x + self._positions(inputs).astype(x.dtype)

        def step(block: Block, x: Array, _: None) -> tuple[Array, Array]:
            x = block(layers.shard_batch(x), angles, inputs)
            return x, x

        x, outputs = layers.scan(self.blocks, step, x)
        chosen = outputs[np.array(self.config.deepstack_visual_indexes)]
        _, deepstack = layers.scan(self.deepstack_merger_list, lambda merger, carry, x: (carry, merger(x)), None, chosen)
        return Features(self.merger(x), deepstack)

    def _positions(self, inputs: EncoderInputs) -> Float[Array, "i p d"]:
        """The learned positions of every patch: their square stretched over the picture, corner to corner, and interpolated (bilinear)."""
        side, table = self.config.grid_side, self.pos_embed.embedding[...].astype(jnp.float32)
        last = jnp.max(jnp.where(inputs.patch_mask[..., None], inputs.patch_positions, 0), axis=1, keepdims=True)
        at = inputs.patch_positions * ((side - 1) / jnp.maximum(last, 1))
        low = jnp.clip(jnp.floor(at), 0, side - 1).astype(jnp.int32)
        high, part = jnp.minimum(low + 1, side - 1), at - low

        def corner(row: Int[Array, "i p"], column: Int[Array, "i p"], weight: Float[Array, "i p"]) -> Float[Array, "i p d"]:
            return table[row * side + column] * weight[..., None]

        (row, column), (row_after, column_after) = (jnp.unstack(index, axis=-1) for index in (low, high))
        down, right = jnp.unstack(part, axis=-1)
        top = corner(row, column, (1 - down) * (1 - right)) + corner(row, column_after, (1 - down) * right)
        return top + corner(row_after, column, down * (1 - right)) + corner(row_after, column_after, down * right)


def _norm(d: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm in float32, float32 out: the projection after it goes back to the compute dtype."""
    return nnx.LayerNorm(d, epsilon=EPS, use_fast_variance=False, dtype=jnp.float32, rngs=rngs)
