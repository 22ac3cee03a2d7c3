"""Floating-point operations by formula, from a network's sizes and the shapes of its batch; a multiplication and an addition are two.

Counts products of matrices and dense convolutions, which matrix units compute, and no element-wise work (norms, softmax, rotation, gates,
depthwise convolutions). Attention counts all keys for all queries, causal or not, and padding counts as tokens, as
is usual for model FLOPs (PaLM, arXiv 2204.02311, appendix B). A compiler's own count does not help: it counts the body of a loop, and so a
stack of layers, once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from dim_jax.models.dc_ae import GLU_RATIO
from dim_jax.models.dc_ae_config import RES_BLOCK, DCAEConfig, Stage
from dim_jax.models.qwen import QwenConfig
from dim_jax.models.qwen_text import TextConfig
from dim_jax.models.qwen_vision import CHANNELS, VisionConfig
from dim_jax.models.sana import Remat
from dim_jax.models.sana_config import SanaConfig
from dim_jax.processing.inputs import EncoderInputs


@dataclass(frozen=True)
class StepFlops:
    """A step on all devices: forward and backward by part, and what the backward pass recomputes to save memory."""

    parts: Mapping[str, int]
    recomputed: int = 0

    @property
    def model(self) -> int:
        """Without recomputation: the numerator of model FLOPs utilisation (MFU)."""
        return sum(self.parts.values())

    @property
    def hardware(self) -> int:
        """With recomputation."""
        return self.model + self.recomputed


@dataclass(frozen=True)
class ForwardFlops:
    """FLOPs of a forward pass: `weights` of products with parameters, `mixing` of products of activations with each other."""

    weights: int
    mixing: int = 0

    def __add__(self, other: "ForwardFlops") -> "ForwardFlops":
        return ForwardFlops(self.weights + other.weights, self.mixing + other.mixing)

    @property
    def forward(self) -> int:
        return self.weights + self.mixing

    def step(self, *, trainable: bool, backprop: bool = False) -> int:
        """Forward and backward. Of a product with parameters, the gradient of either factor costs as much as the product itself.

        `trainable`: its parameters get gradients; `backprop`: gradients pass through it to an earlier part.
        """
        return self.weights * (1 + trainable + (trainable or backprop)) + self.mixing * (1 + 2 * (trainable or backprop))


def encoder(config: QwenConfig, inputs: EncoderInputs) -> ForwardFlops:
    """From tokens and patches to the last hidden states; only shapes of `inputs` are read."""
    b, t = inputs.input_ids.shape
    work = text(config.text, b, t)
    i, p = inputs.patches.shape[:2]
    if i:
        work += vision(config.vision, i, p, windows=inputs.windows.shape[1:])
    return work


def text(config: TextConfig, b: int, t: int) -> ForwardFlops:
    """The decoder's layers on `b` rows of `t` tokens."""
    d, f = config.hidden_size, config.intermediate_size
    d_keys = config.num_key_value_heads * config.head_dim
    layers = config.num_hidden_layers
    return ForwardFlops(layers * 2 * b * t * (2 * d * d + 2 * d * d_keys + 3 * d * f), layers * _attention(b, t, t, d))


def logits(config: TextConfig, b: int, t: int) -> ForwardFlops:
    """Scores of the next token after every one of `t` tokens."""
    return ForwardFlops(2 * b * t * config.hidden_size * config.vocab_size)


def vision(config: VisionConfig, i: int, p: int, *, windows: tuple[int, int]) -> ForwardFlops:
    """The tower on `i` pictures of `p` patches, laid out in `windows` (their number, patches of each)."""
    d, f, group = config.hidden_size, config.intermediate_size, config.layout.group
    w, m = windows
    pixels = CHANNELS * config.temporal_patch_size * config.patch_size**2
    full_layers = len(set(config.fullatt_block_indexes))
    merger = p // group * (group * d) * (group * d + config.out_hidden_size)
    weights = p * pixels * d + config.depth * p * (4 * d * d + 3 * d * f) + merger
    return ForwardFlops(2 * i * weights, full_layers * _attention(i, p, p, d) + (config.depth - full_layers) * _attention(i * w, m, m, d))


def connector(d_encoder: int, d: int, b: int, t: int) -> ForwardFlops:
    """Hidden states to condition tokens."""
    return ForwardFlops(2 * b * t * (d_encoder * d + d * d))


def sana_condition(config: SanaConfig, b: int, t: int, calls: int = 1) -> ForwardFlops:
    """Condition tokens to keys and values of every block, which each of `calls` of the network computes anew."""
    c, d = config.caption_channels, config.width
    return ForwardFlops(2 * b * t * (c * d + d * d + calls * config.depth * 2 * d * d))


def sana_blocks(config: SanaConfig, b: int, l: int, t: int) -> ForwardFlops:  # noqa: E741 (letters as in shapes)
    """The blocks on `l` latent tokens and `t` condition tokens, without keys and values."""
    d, f = config.width, int(config.width * config.mlp_ratio)
    mixing = _linear_attention(b * l, d, config.linear_head_dim) + _attention(b, l, t, d)
    return ForwardFlops(config.depth * 2 * b * l * (6 * d * d + 3 * d * f), config.depth * mixing)


def sana_recomputed(config: SanaConfig, b: int, l: int, t: int, remat: Remat) -> int:  # noqa: E741
    """What the backward pass recomputes (`models.sana.SAVED_NAMES`), including what a flash kernel saves."""
    d, f, blocks = config.width, int(config.width * config.mlp_ratio), sana_blocks(config, b, l, t)
    keys_values = config.depth * 4 * b * t * d * d
    wide = config.depth * 2 * b * l * (3 * d * d + 2 * d * f) + keys_values  # of products: those that "narrow" does not save
    recomputed = {"none": 0, "products": blocks.mixing, "narrow": blocks.mixing + wide, "all": blocks.forward + keys_values}
    return recomputed[remat]


def sana(config: SanaConfig, b: int, l: int, t: int, calls: int = 1, keys: int | None = None) -> ForwardFlops:  # noqa: E741
    """Velocities from latents and condition tokens, in `calls` that share the tokens' projection, and of which `keys` compute keys and
    values (None: each does). The timestep's embedding, once a row, is left out: a millionth of the rest."""
    ends = 2 * calls * b * l * config.width * (config.in_channels + config.velocities * config.latent_channels)
    return sana_condition(config, b, t, calls if keys is None else keys) + sana_blocks(config, calls * b, l, t) + ForwardFlops(ends)


def dc_ae_encoder(config: DCAEConfig, b: int, h: int, w: int) -> ForwardFlops:
    """`h` x `w` pixels to latents. (The overlap of tiles, for very large pictures, is left out.)"""
    stages, pixels = config.encoder, b * h * w
    work = _conv(3, stages[0].d, pixels) + _conv(stages[-1].d, config.latent_channels, pixels // config.factor**2)
    for i, (fine, coarse) in enumerate(pairwise(stages)):
        work += _conv(fine.d, coarse.d, pixels // 4 ** (i + 1))
    return sum((_stage(stage, config.attention_head_dim, pixels // 4**i) for i, stage in enumerate(stages)), start=work)


def dc_ae_decoder(config: DCAEConfig, b: int, h: int, w: int) -> ForwardFlops:
    """Latents to `h` x `w` pixels. Both ways to double a side cost the same: a quarter of the points, or of the channels."""
    stages, pixels = config.decoder, b * h * w
    finest = next(stage.d for stage in stages if stage.depth)
    work = _conv(config.latent_channels, stages[-1].d, pixels // config.factor**2) + _conv(finest, 3, pixels)
    for i, (fine, coarse) in enumerate(pairwise(stages)):
        if fine.depth:
            work += _conv(coarse.d, fine.d, pixels // 4**i)
    return sum((_stage(stage, config.attention_head_dim, pixels // 4**i) for i, stage in enumerate(stages)), start=work)


def _stage(stage: Stage, k: int, points: int) -> ForwardFlops:
    d = stage.d
    if stage.block == RES_BLOCK:
        block = _conv(d, d, points) + _conv(d, d, points)
    else:
        wide, f = d * (1 + len(stage.scales)), GLU_RATIO * d
        products = 3 * d * d + len(stage.scales) * 3 * d * k + wide * d + 3 * d * f
        block = ForwardFlops(2 * points * products, _linear_attention(points, wide, k))
    return ForwardFlops(stage.depth * block.weights, stage.depth * block.mixing)


def _conv(d: int, d_out: int, points: int) -> ForwardFlops:
    """A 3 x 3 convolution to `points` points."""
    return ForwardFlops(2 * points * 9 * d * d_out)


def _attention(b: int, t: int, s: int, d: int) -> int:
    """Softmax attention of `t` queries to `s` keys, over all heads."""
    return 4 * b * t * s * d


def _linear_attention(tokens: int, d: int, k: int) -> int:
    """The state of every head, its product with the queries, and their sum."""
    return 2 * tokens * d * (2 * k + 1)
