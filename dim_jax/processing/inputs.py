"""What the encoder reads: tokens, patches and every index that follows from picture sizes, computed once in numpy.

The encoder itself has static shapes and no data-dependent index. Letters: b rows, t tokens, i pictures of the batch in reading
order, p patches of the largest picture (smaller ones are padded), w windows, m patches of a window, c = 3 * 2 * 14 * 14.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, Num, UInt8

from dim_jax.errors import InputError, check

# The means and standard deviations of OpenAI's CLIP, for red, green and blue in [0, 1].
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class VisionLayout:
    """How Qwen2.5-VL cuts pictures: sizes in pixels, `merge_size` in patches."""

    patch_size: int = 14
    merge_size: int = 2
    temporal_patch_size: int = 2
    window_size: int = 112

    @property
    def window_units(self) -> int:
        """Side of an attention window, counted in merge groups."""
        return self.window_size // self.merge_size // self.patch_size

    @property
    def group(self) -> int:
        """Patches that the merger makes one token of."""
        return self.merge_size**2


BATCH_AXIS = "batch_axis"  # metadata of a field: the axis of its rows or pictures, if that is not axis 0


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EncoderInputs:
    """A batch for the encoder, right-padded. Patches keep the order of Hugging Face's `pixel_values` (merge groups are adjacent).

    The arrays are numpy's, JAX's or abstract ones.
    """

    input_ids: Int[Any, "b t"]
    mask: Bool[Any, "b t"]  # False: padding
    position_ids: Int[Any, "3 b t"] = field(metadata={BATCH_AXIS: 1})  # mRoPE: time, row, column
    user_turn: Bool[Any, "b t"]  # True: the token becomes part of the condition
    picture_tokens: Int[Any, "b t"]  # index of a picture token's feature in the flattened merged features (i * p/4); -1: text
    patches: Num[Any, "i p c"]  # 8-bit samples, as they are sent to the accelerator, or already normalized
    patch_mask: Bool[Any, "i p"]
    patch_positions: Int[Any, "i p 2"]  # row and column of each patch, for the vision rotary embedding
    windows: Int[Any, "i w m"]  # the patches of each attention window; 0 where window_mask is False
    window_mask: Bool[Any, "i w m"]  # padding is at the end of a window
    window_slots: Int[Any, "i p"]  # index of each patch in the flattened windows (w * m), to undo the windows


def normalize(patches: UInt8[Any, "*rows c"]) -> Float[Any, "*rows c"]:
    """Patches as the vision tower reads them, in float32; on the host with the arithmetic of transformers' PIL processor, to the bit."""
    mean, std = (np.array(values, np.float32)[:, None] for values in (CLIP_MEAN, CLIP_STD))
    unit = patches.reshape(*patches.shape[:-1], len(CLIP_MEAN), -1).astype(np.float32) / np.float32(255)
    return ((unit - mean) / std).reshape(patches.shape)


def encoder_inputs(
    input_ids: Int[np.ndarray, "b t"],
    mask: Bool[np.ndarray, "b t"],
    user_turn: Bool[np.ndarray, "b t"],
    patches: Sequence[Num[np.ndarray, "_ c"]],
    grids: Sequence[tuple[int, int]],
    *,
    image_token_id: int,
    layout: VisionLayout = VisionLayout(),
    patch_length: int | None = None,
) -> EncoderInputs:
    """Tokens and pictures (patches and grid (rows, columns) in patches, in reading order) as one batch.

    `patch_length` pads every picture to that many patches (default: the largest picture); the number of windows then follows from
    it too for every picture up to 4 : 1, so that one length compiles once. Position ids of padding are 0.

    Raises:
        InputError: picture tokens and pictures do not agree, a picture has more patches than `patch_length`, a grid or
            `patch_length` is not a multiple of the merge size, or a row is not padded on the right.
    """
    largest = max((rows * columns for rows, columns in grids), default=layout.group)
    length = largest if patch_length is None else patch_length
    _check_pictures(patches, grids, length, layout)
    _check_padding(mask)
    position_ids, picture_tokens = _token_indices(input_ids == image_token_id, mask, grids, length, layout)

    channels = patches[0].shape[1] if patches else 3 * layout.temporal_patch_size * layout.patch_size**2
    count, w = len(patches), max([_window_capacity(length, layout) if patch_length else 1, *(_num_windows(grid, layout) for grid in grids)])
    batch = EncoderInputs(
        input_ids=input_ids.astype(np.int32),
        mask=mask,
        position_ids=position_ids,
        user_turn=user_turn,
        picture_tokens=picture_tokens,
        patches=np.zeros((count, length, channels), patches[0].dtype if patches else np.uint8),
        patch_mask=np.zeros((count, length), bool),
        patch_positions=np.zeros((count, length, 2), np.int32),
        windows=np.zeros((count, w, layout.window_units**2 * layout.group), np.int32),
        window_mask=np.zeros((count, w, layout.window_units**2 * layout.group), bool),
        window_slots=np.zeros((count, length), np.int32),
    )
    for picture, (pixels, grid) in enumerate(zip(patches, grids, strict=True)):
        size = len(pixels)
        slots = _window_slots(grid, layout)
        batch.patches[picture, :size] = pixels
        batch.patch_mask[picture, :size] = True
        batch.patch_positions[picture, :size] = _patch_positions(grid, layout)
        batch.windows[picture].reshape(-1)[slots] = np.arange(size)
        batch.window_mask[picture].reshape(-1)[slots] = True
        batch.window_slots[picture, :size] = slots
    return batch


def offset_picture_tokens(inputs: EncoderInputs, rows: Int[np.ndarray, " b"], layout: VisionLayout = VisionLayout()) -> EncoderInputs:
    """The same inputs as rows `rows` of a larger batch, where `picture_tokens` counts the pictures of all rows (as many in each row)."""
    pictures, length = inputs.patches.shape[:2]
    pictures_per_row = pictures // len(rows)
    offsets = (rows - np.arange(len(rows))) * (
        pictures_per_row * length // layout.group
    )  # features of earlier pictures that are not in this batch
    tokens = inputs.picture_tokens
    return replace(inputs, picture_tokens=np.where(tokens < 0, tokens, tokens + offsets[:, None]).astype(np.int32))


def _check_pictures(patches: Sequence[np.ndarray], grids: Sequence[tuple[int, int]], length: int, layout: VisionLayout) -> None:
    if len(patches) != len(grids):
        raise InputError(f"{len(patches)} pictures came with {len(grids)} grids. Give one grid (rows, columns) for each picture.")
    for picture, (pixels, (rows, columns)) in enumerate(zip(patches, grids, strict=True)):
        if rows % layout.merge_size or columns % layout.merge_size:
            raise InputError(f"Picture {picture}: the sides of its grid {rows} x {columns} must be multiples of {layout.merge_size}.")
        check(len(pixels) == rows * columns, f"Picture {picture}: {len(pixels)} patches do not fill its grid {rows} x {columns}.")
        if len(pixels) > length:
            raise InputError(f"Picture {picture}: {len(pixels)} patches are more than patch_length {length}. Make the picture smaller.")
    if length % layout.group:
        raise InputError(f"patch_length {length} is not a multiple of {layout.group}, the patches of one picture token. Round it up.")


def _check_padding(mask: np.ndarray) -> None:
    """Causal attention has no mask, so padding must come after all tokens of a row."""
    for row in np.flatnonzero((mask[:, 1:] & ~mask[:, :-1]).any(1) | ~mask[:, 0]):
        raise InputError(f"Row {row}: its tokens must come first and its padding after them (mask True, ..., True, False, ...).")


def _token_indices(
    is_picture: np.ndarray, mask: np.ndarray, grids: Sequence[tuple[int, int]], length: int, layout: VisionLayout
) -> tuple[np.ndarray, np.ndarray]:
    """Position ids (3, b, t) and picture tokens (b, t).

    A text token's three positions are equal. A picture's tokens share the time, and count rows and columns from the next free
    position; the next token continues after the longer side (Qwen2-VL, arXiv 2409.12191, section 2.1).
    """
    position_ids = np.zeros((3, *mask.shape), np.int32)
    picture_tokens = np.full(mask.shape, -1, np.int32)
    picture = 0
    for row, size in enumerate(mask.sum(1)):
        token = position = 0
        while token < size:
            if is_picture[row, token]:
                check(picture != len(grids), f"Row {row}: token {token} shows a picture, but all {len(grids)} pictures are used already.")
                rows, columns = (side // layout.merge_size for side in grids[picture])
                end = token + rows * columns
                if end > size or not is_picture[row, token:end].all():
                    raise InputError(f"Row {row}: picture {picture} needs {rows * columns} picture tokens in a row from token {token} on.")
                position_ids[:, row, token:end] = position
                position_ids[1:, row, token:end] += np.indices((rows, columns)).reshape(2, -1)
                picture_tokens[row, token:end] = picture * (length // layout.group) + np.arange(rows * columns)
                picture, position = picture + 1, position + max(rows, columns)
            else:
                next_pictures = np.flatnonzero(is_picture[row, token:size])
                end = token + next_pictures[0] if len(next_pictures) else size
                position_ids[:, row, token:end] = position + np.arange(end - token)
                position += end - token
            token = end
    check(picture >= len(grids), f"{len(grids)} pictures were given, but the tokens show {picture}.")
    return position_ids, picture_tokens


@lru_cache(maxsize=64)
def _patch_positions(grid: tuple[int, int], layout: VisionLayout) -> np.ndarray:
    """Row and column (p, 2) of a picture's patches, merge group after merge group."""
    rows, columns, merge = grid[0] // layout.merge_size, grid[1] // layout.merge_size, layout.merge_size
    return np.indices(grid).reshape(2, rows, merge, columns, merge).transpose(1, 3, 2, 4, 0).reshape(-1, 2)


def _num_windows(grid: tuple[int, int], layout: VisionLayout) -> int:
    """Windows that a picture is cut into, the last of a row or column being smaller."""
    return math.prod(-(-side // (layout.merge_size * layout.window_units)) for side in grid)


def _window_capacity(length: int, layout: VisionLayout) -> int:
    """Enough windows for `length` patches in any shape up to 4 : 1.

    Sides a, b (in merge groups) make at most (a + s - 1)(b + s - 1) / s^2 windows of side s, where a b <= u and a + b <= 2.5 sqrt(u).
    """
    units, side = length // layout.group, layout.window_units
    return int((units + 2.5 * (side - 1) * math.sqrt(units) + (side - 1) ** 2) / side**2)


@lru_cache(maxsize=64)
def _window_slots(grid: tuple[int, int], layout: VisionLayout) -> np.ndarray:
    """Index of each patch (p,) of a picture in its flattened windows; each window is filled from the left in reading order."""
    side = layout.window_units
    rows, columns = (size // layout.merge_size for size in grid)
    row, column = np.indices((rows, columns)).reshape(2, -1)
    window = row // side * -(-columns // side) + column // side
    order = np.argsort(window, kind="stable")
    first = np.searchsorted(window[order], np.arange(window.max() + 1))
    offset = np.empty_like(window)
    offset[order] = np.arange(len(window)) - first[window[order]]
    return ((window * side**2 + offset)[:, None] * layout.group + np.arange(layout.group)).reshape(-1)
