"""What the encoder reads: tokens, patches and every index that follows from picture sizes, computed once in numpy.

The encoder itself has static shapes and no data-dependent index. Letters: b rows, t tokens, i pictures of the batch in reading
order, p patches of the largest picture (smaller ones are padded), w windows, m patches of a window, c = 3 * 2 * 14 * 14.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int


@dataclass(frozen=True)
class VisionLayout:
    """How Qwen2.5-VL cuts pictures: sizes in pixels, `merge_size` in patches."""

    patch_size: int = 14
    merge_size: int = 2
    temporal_patch_size: int = 2
    window_size: int = 112


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EncoderInputs:
    """A batch for the encoder, right-padded. Patches keep the order of Hugging Face's `pixel_values` (merge groups are adjacent)."""

    input_ids: Int[Array | np.ndarray, "b t"]
    mask: Bool[Array | np.ndarray, "b t"]  # False: padding
    position_ids: Int[Array | np.ndarray, "3 b t"]  # mRoPE: time, row, column
    user_turn: Bool[Array | np.ndarray, "b t"]  # the tokens that become the condition
    picture_tokens: Int[Array | np.ndarray, "b t"]  # row of the flattened merged features (i * p/4) that a picture token shows; -1: text
    patches: Float[Array | np.ndarray, "i p c"]
    patch_mask: Bool[Array | np.ndarray, "i p"]
    patch_positions: Int[Array | np.ndarray, "i p 2"]  # row and column of each patch, for the vision rotary embedding
    windows: Int[Array | np.ndarray, "i w m"]  # the patches of each attention window; 0 where window_mask is False
    window_mask: Bool[Array | np.ndarray, "i w m"]
    window_slots: Int[Array | np.ndarray, "i p"]  # where each patch stands in the flattened windows (w * m): the way back


def encoder_inputs(
    input_ids: Int[np.ndarray, "b t"],
    mask: Bool[np.ndarray, "b t"],
    user_turn: Bool[np.ndarray, "b t"],
    patches: Sequence[Float[np.ndarray, "_ c"]],
    grids: Sequence[tuple[int, int]],
    *,
    image_token_id: int,
    layout: VisionLayout = VisionLayout(),
    patch_length: int | None = None,
) -> EncoderInputs:
    """Tokens and pictures (patches and grid (rows, columns) in patches, in reading order) as one batch.

    `patch_length` pads every picture to that many patches (default: the largest picture).

    Raises:
        InputError: picture tokens and pictures do not agree, or a picture has more patches than `patch_length`.
    """
