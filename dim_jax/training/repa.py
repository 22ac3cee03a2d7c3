"""Representation alignment (REPA, arXiv 2410.06940): SANA's hidden states are drawn to what the frozen encoder sees in the target.

The hidden states after one block pass a small network, the projection, which learns with SANA and is not exported. Its results
should point, place by place, where the features of the encoder's vision tower do. REPA takes another network's features (DINOv2) and three
layers; here the encoder is at hand, and the projection has the connector's form. Config: config.repa.
"""

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from dim_jax.config import Config
from dim_jax.errors import check
from dim_jax.models import layers
from dim_jax.models.connector import Connector
from dim_jax.models.qwen import Qwen
from dim_jax.processing.inputs import EncoderInputs, encoder_inputs
from dim_jax.processing.processor import smart_resize
from dim_jax.weights.model_config import REPA, ModelConfig


class Alignment(NamedTuple):
    """How hidden states are aligned: the projection, the number of blocks after which they are taken, and the loss's weight."""

    projection: Connector
    block: int
    weight: float

    def similarity(self, hidden: Float[Array, "b h w d"], features: Float[Array, "b rows columns d_features"]) -> Float[Array, ""]:
        """`alignment` of the projected hidden states."""
        b, h, w, d = hidden.shape
        return alignment(self.projection(hidden.reshape(b, h * w, d)).reshape(b, h, w, -1), features)


def check_repa(config: Config) -> None:
    """Refuse a `config.repa` that other keys do not fit.

    Raises:
        InputError: says which, and what to do.
    """
    if not config.repa.weight:
        return
    given, off = f"config.repa.weight is {config.repa.weight}", "Set it to 0."
    check(config.objective == "painter", f"{given}: only a painter has hidden states to align. {off}")
    check(config.distill.method == "none", f"{given}: a student imitates its teacher alone. {off}")
    check(not config.lora.rank, f"{given}: a LoRA trains adapters alone. {off}")
    check(not config.data.cache, f"{given}: a cache holds no target pictures, whose features it needs. Set data.cache to '', or it to 0.")
    check(
        REPA in config.trainable and "encoder" in config.frozen,
        f"{given}: its projection must learn, and the encoder must not. Set trainable to ('connector', 'sana', '{REPA}').",
    )


def repa_widths(config: Config, sizes: ModelConfig) -> tuple[int, int]:
    """The widths that the projection goes from and to: SANA's, and the features'.

    Raises:
        InputError: SANA has fewer blocks than `config.repa.block`.
    """
    assert sizes.sana is not None
    depth = sizes.sana.depth
    check(1 <= config.repa.block <= depth, f"config.repa.block is {config.repa.block}: SANA has {depth} blocks. Set it from 1 to {depth}.")
    return sizes.sana.width, sizes.encoder.vision.out_hidden_size


def picture_features(encoder: Qwen, pixels: UInt8[Array, "b h w 3"]) -> Float[Array, "b rows columns d"]:
    """What the vision tower makes of whole pictures, as the decoder reads it: a feature for each 28 x 28 pixels (of nano 16 x 16).

    Pictures are resized as the processor does it (bicubic, to multiples of that), but on the device.
    """
    layout, (b, h, w, _) = encoder.config.vision.layout, pixels.shape
    merge, side, time = layout.merge_size, layout.patch_size, layout.temporal_patch_size
    height, width = smart_resize(h, w, merge * side)
    if (height, width) != (h, w):
        resized = jax.image.resize(pixels.astype(jnp.float32), (b, height, width, 3), "cubic")
        pixels = jnp.clip(jnp.round(resized), 0, 255).astype(jnp.uint8)
    rows, columns = height // (merge * side), width // (merge * side)
    groups = pixels.reshape(b, rows, merge, side, columns, merge, side, 3).transpose(0, 1, 4, 2, 5, 7, 3, 6)
    patches = jnp.repeat(groups[..., None, :, :], time, axis=-3).reshape(b, rows * columns * layout.group, -1)
    features = encoder.visual(_inputs(patches, rows, columns, encoder))
    return features.reshape(b, rows, columns, -1)


def _inputs(patches: UInt8[Array, "b p c"], rows: int, columns: int, encoder: Qwen) -> EncoderInputs:
    """Turns of one picture and nothing else: of each all indices are the same."""
    b, layout, token = len(patches), encoder.config.vision.layout, encoder.config.image_token_id
    ids, real = np.full((b, rows * columns), token), np.ones((b, rows * columns), bool)
    grid, empty = (rows * layout.merge_size, columns * layout.merge_size), np.empty(patches.shape[1:], np.uint8)
    inputs = encoder_inputs(ids, real, real, [empty] * b, [grid] * b, image_token_id=token, layout=layout)
    return replace(inputs, patches=patches)


def alignment(projected: Float[Array, "b h w d"], features: Float[Array, "b rows columns d"]) -> Float[Array, ""]:
    """The mean cosine similarity of projected hidden states to the features at their place, float32.

    Features are interpolated to the grid of the hidden states, or averaged where that is coarser.
    """
    features = jax.image.resize(features.astype(jnp.float32), (*projected.shape[:3], features.shape[-1]), "linear")
    product = jnp.sum(_unit(projected.astype(jnp.float32)) * _unit(layers.shard_batch(features)), -1)
    return product.mean()


def _unit(x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
    return x * jax.lax.rsqrt(jnp.sum(x**2, -1, keepdims=True) + 1e-12)
