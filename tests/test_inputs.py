"""Every index that the encoder reads: positions against transformers, windows, padding, and what is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from dim_jax.errors import InputError
from dim_jax.processing.inputs import VisionLayout, encoder_inputs

PICTURE, PAD, C = 290, 0, 6
few = settings(max_examples=25, deadline=None, derandomize=True)
sides = st.integers(1, 11).map(lambda units: 2 * units)
rows_of_grids = st.lists(st.lists(st.tuples(sides, sides), max_size=2), min_size=1, max_size=3)


def tokens(rows, extra=0):
    """Right-padded ids and mask: two text tokens before, between and after the pictures of each row."""
    lists = [[7, 8] + [i for h, w in grids for i in [PICTURE] * (h * w // 4) + [9, 9]] for grids in rows]
    width = max(map(len, lists)) + extra
    ids = np.array([row + [PAD] * (width - len(row)) for row in lists])
    mask = np.array([[True] * len(row) + [False] * (width - len(row)) for row in lists])
    return ids, mask


def build(rows, extra=0, seed=0, **options):
    ids, mask = tokens(rows, extra)
    grids = [grid for row in rows for grid in row]
    patches = [np.random.default_rng(seed + i).normal(size=(h * w, C)).astype(np.float32) for i, (h, w) in enumerate(grids)]
    return encoder_inputs(ids, mask, mask, patches, grids, image_token_id=PICTURE, **options)


@few
@given(rows_of_grids, st.integers(0, 3))
def test_position_ids_are_those_of_transformers(rows, extra):
    ids, mask = tokens(rows, extra)
    ours = build(rows, extra).position_ids
    model = Qwen2_5_VLModel.__new__(Qwen2_5_VLModel)  # get_rope_index reads nothing but the config
    torch.nn.Module.__init__(model)
    model.config = Qwen2_5_VLConfig()
    grids = torch.tensor([(1, *grid) for row in rows for grid in row]).reshape(-1, 3)
    theirs, _ = model.get_rope_index(
        torch.tensor(ids), torch.tensor((ids == PICTURE) * 1), image_grid_thw=grids, attention_mask=torch.tensor(mask * 1)
    )
    np.testing.assert_array_equal(ours, theirs.numpy())


@few
@given(sides, sides)
def test_windows_and_patch_positions_are_those_of_transformers(h, w):
    batch = build([[(h, w)]])
    order, ends = get_vision_window_index(torch.tensor([[1, h, w]]), 2, 112, 14)
    theirs = np.split((order.numpy()[:, None] * 4 + np.arange(4)).reshape(-1), ends.numpy()[1:-1])
    ours = [patches[mask] for patches, mask in zip(batch.windows[0], batch.window_mask[0], strict=True) if mask.any()]
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(batch.patch_positions[0], get_vision_position_ids(torch.tensor([[1, h, w]]), 2).numpy())


@few
@given(rows_of_grids, st.integers(0, 5))
def test_window_order_is_invertible(rows, extra):
    grids = [grid for row in rows for grid in row]
    batch = build(rows, patch_length=max([h * w for h, w in grids], default=4) + 4 * extra)
    for i, (h, w) in enumerate(grids):
        np.testing.assert_array_equal(batch.windows[i].reshape(-1)[batch.window_slots[i, : h * w]], np.arange(h * w))
        assert batch.patch_mask[i].sum() == batch.window_mask[i].sum() == h * w
    assert (batch.window_mask[..., 1:] <= batch.window_mask[..., :-1]).all(), "padding stands at the end of a window"


def test_picture_tokens_name_the_merged_rows_of_each_picture():
    batch = build([[(2, 4), (4, 4)], [], [(2, 2)]])
    assert batch.picture_tokens[0].tolist() == [-1, -1, 0, 1, -1, -1, 4, 5, 6, 7, -1, -1]
    assert (batch.picture_tokens[1] == -1).all()
    assert batch.picture_tokens[2].tolist() == [-1, -1, 8] + [-1] * 9


def test_pictures_side_by_side_without_text_between_them():
    ids = np.array([[PICTURE] * 3 + [5]])
    patches = [np.zeros((4, C), np.float32), np.zeros((8, C), np.float32)]
    batch = encoder_inputs(ids, ids > 0, ids > 0, patches, [(2, 2), (2, 4)], image_token_id=PICTURE)
    assert batch.position_ids[:, 0].tolist() == [[0, 1, 1, 3], [0, 1, 1, 3], [0, 1, 2, 3]]
    assert batch.picture_tokens[0].tolist() == [0, 2, 3, -1]


def test_text_only():
    batch = build([[], []], extra=2)
    assert batch.patches.shape == (0, 4, 1176)
    assert batch.windows.shape == (0, 1, 64)
    assert batch.position_ids[:, 0].tolist() == [[0, 1, 0, 0]] * 3


@pytest.mark.parametrize("length", [16, 400, 5476])
def test_one_patch_length_has_one_shape_up_to_four_to_one(length):
    units = length // 4
    grids = [(2 * a, 2 * b) for a in range(1, units + 1) for b in range(a, min(4 * a, units // a) + 1)]
    widest = max(-(-a // 8) * -(-b // 8) for a, b in grids)
    shapes = {build([[grid]], patch_length=length).windows.shape for grid in grids[:: max(1, len(grids) // 20)]}
    assert len(shapes) == 1
    assert shapes.pop()[1] >= widest


def test_the_published_square_picture():
    layout = VisionLayout()
    assert (layout.window_units, layout.group) == (4, 4)
    assert build([[(74, 74)]]).windows.shape == (1, 100, 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patches": []}, "0 pictures came with 1 grids"),
        ({"grids": [(2, 3)], "patches": [np.zeros((6, C), np.float32)]}, "must be multiples of 2"),
        ({"patches": [np.zeros((8, C), np.float32)]}, "8 patches do not fill its grid 2 x 2"),
        ({"patch_length": 6}, "not a multiple of 4"),
        ({"grids": [(4, 2)], "patches": [np.zeros((8, C), np.float32)], "patch_length": 4}, "more than patch_length 4"),
        ({"grids": [(4, 2)], "patches": [np.zeros((8, C), np.float32)]}, "needs 2 picture tokens in a row from token 1"),
        ({"grids": [], "patches": []}, "token 1 shows a picture, but all 0"),
        ({"input_ids": np.array([[7, 8, 9]])}, "1 pictures were given, but the tokens show 0"),
        ({"mask": np.array([[False, True, True]])}, "padding after them"),
        ({"mask": np.array([[True, False, True]])}, "padding after them"),
    ],
)
def test_invalid_inputs_are_refused(change, message):
    given = {
        "input_ids": np.array([[7, PICTURE, 9]]),
        "mask": np.ones((1, 3), bool),
        "user_turn": np.ones((1, 3), bool),
        "patches": [np.zeros((4, C), np.float32)],
        "grids": [(2, 2)],
        **change,
    }
    with pytest.raises(InputError, match=message):
        encoder_inputs(**given, image_token_id=PICTURE)
