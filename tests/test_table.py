"""The weight table: every format's rows name every tensor once, and a tensor that goes there and back has the same bytes."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dim_jax.models.dc_ae_config import DCAEConfig
from dim_jax.models.qwen import QwenConfig
from dim_jax.models.sana_config import SanaConfig
from dim_jax.weights import table
from dim_jax.weights.arrays import contiguous, copy_into, is_finite, same_bits
from dim_jax.weights.families import families
from dim_jax.weights.formats import DIM, FORMATS, NULL_TABLE
from dim_jax.weights.model_config import ModelConfig
from dim_jax.weights.table import CONV, DEPTHWISE, LINEAR, PATCH_3D, POINTWISE, SAME, Row, Transform, from_hf, tensor_mappings, to_hf

TINY = ModelConfig(QwenConfig.tiny(), SanaConfig(16, 8, 64, 3, 2, 32, 40, 7), DCAEConfig.tiny())
KINDS = {SAME: (3, 4), LINEAR: (3, 4), CONV: (3, 4, 5, 2), POINTWISE: (3, 4, 1, 1), DEPTHWISE: (3, 1, 5, 2), PATCH_3D: (3, 4, 2, 5, 6)}
DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16)


def random(shape: tuple[int, ...], dtype: type, rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal(shape, np.float32).astype(dtype)


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in families()])
def test_every_format_is_a_bijection(name):
    """Every published tensor has one place in ours; random ones come back with their bytes, whatever their dtype. (Pipelines of other
    families have other sizes: tests/parity/test_families.py.)"""
    form, rng = FORMATS[name], np.random.default_rng(0)
    embeds = any("guidance_embedder" in row.jax for row in form.rows)
    shapes = replace(TINY, sana=TINY.sana and replace(TINY.sana, guidance_embeds=embeds)).shapes()
    parts = {row.jax.split(".")[0] for row in form.rows}
    paths = [path for path in shapes if path.split(".")[0] in parts]
    if name in ("diffusers-sana", "diffusers-guidance-sana"):
        paths.remove(NULL_TABLE)
    assert sorted(form.matching(paths)) == sorted(paths), "a parameter has no row"
    found = tensor_mappings(form.rows, {path: shapes[path] for path in paths})
    assert sum(np.prod(slot.shape) for slot in found.values()) == sum(np.prod(shapes[path]) for path in paths)
    published = {key: random(slot.shape, DTYPES[len(slot.path) % 3], rng) for key, slot in found.items()}
    ours = dict(from_hf(found, published.__getitem__))
    assert {path: tensor.shape for path, tensor in ours.items()} == {path: shapes[path] for path in paths}
    back = dict(to_hf(found, ours.__getitem__))
    assert back.keys() == published.keys()
    assert all(same_bits(np.ascontiguousarray(back[key]), published[key]) for key in published)


def test_published_sizes_have_the_published_number_of_tensors():
    """390 of the vision tower and 434 of the decoder, 4 of the connector, 397 of SANA; the parameters as the design counts them."""
    sizes = ModelConfig(QwenConfig.qwen_3b(), SanaConfig.sana_1600m(edit=True), DCAEConfig.f32c32())
    shapes = sizes.shapes()
    parts = dict.fromkeys(sizes.parts, 0)
    for slot in tensor_mappings(DIM.rows, shapes).values():
        parts[slot.path.split(".")[0]] += 1
    assert (parts["encoder"], parts["connector"], parts["sana"]) == (824, 4, 397)
    counted = {part: sum(int(np.prod(shape)) for path, shape in shapes.items() if path.startswith(part)) for part in sizes.parts}
    assert counted["encoder"] == 3_754_622_976
    assert counted["autoencoder"] == 312_250_275
    # The edit form has 32 more input channels than the published text-to-image one, and the table counts the null rows.
    assert counted["sana"] == 1_604_713_632 + 8192 * 2304
    assert counted["connector"] == 2048 * 2304 + 2304 + 2304 * 2304 + 2304


@given(kind=st.sampled_from(list(KINDS)), dtype=st.sampled_from(DTYPES), data=st.data())
def test_layout_transforms_are_invertible(kind: Transform, dtype, data):
    shape = tuple(size if size == 1 else data.draw(st.integers(1, 5)) for size in KINDS[kind])
    theirs = random(shape, dtype, np.random.default_rng(0))
    ours = kind.from_hf(theirs)
    assert kind.hf_shape(ours.shape) == shape
    assert same_bits(np.ascontiguousarray(kind.to_hf(ours)), theirs)


@given(depth=st.integers(1, 4), parts=st.integers(1, 3), out=st.integers(1, 5), d=st.integers(1, 5), dtype=st.sampled_from(DTYPES))
def test_parts_and_layers_come_back(depth, parts, out, d, dtype):
    names = tuple(f"layers.*.to_{i}.weight" for i in range(parts))
    found = tensor_mappings([Row(names, "layers.to.kernel", LINEAR)], {"layers.to.kernel": (depth, d, parts * out)})
    rng = np.random.default_rng(0)
    published = {name: random((out, d), dtype, rng) for name in found}
    assert set(published) == {f"layers.{layer}.to_{i}.weight" for layer in range(depth) for i in range(parts)}
    ours = dict(from_hf(found, published.__getitem__))
    expected = [np.concatenate([published[f"layers.{layer}.to_{i}.weight"] for i in range(parts)]).T for layer in range(depth)]
    assert same_bits(ours["layers.to.kernel"], np.ascontiguousarray(np.stack(expected)))
    assert all(same_bits(np.ascontiguousarray(tensor), published[name]) for name, tensor in to_hf(found, ours.__getitem__))


def test_a_star_on_both_sides_is_not_stacked():
    found = tensor_mappings([Row("down.*.*.w", "down.*.*.kernel", LINEAR)], {"down.0.1.kernel": (2, 3), "down.1.0.kernel": (4, 5)})
    assert {name: (slot.path, slot.layer) for name, slot in found.items()} == {
        "down.0.1.w": ("down.0.1.kernel", None),
        "down.1.0.w": ("down.1.0.kernel", None),
    }


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], r"a \(2,\): 0 rows"),
        ([Row("a", "a", SAME), Row("b", "a", SAME)], r"a \(2,\): 2 rows"),
        ([Row("x", "a", SAME), Row("x", "b", SAME)], "x: b and a both claim it"),
    ],
)
def test_a_wrong_table_is_an_error(rows, message):
    with pytest.raises(LookupError, match=message):
        tensor_mappings(rows, {"a": (2,), "b": (2,)})


def test_conversion_holds_one_tensor_at_a_time():
    """A stacked tensor is put together when its turn comes, not before."""
    found = tensor_mappings([Row("a.*.w", "a.kernel", SAME), Row("b.*.w", "b.kernel", SAME)], {"a.kernel": (3, 2), "b.kernel": (3, 2)})
    read = []
    stream = from_hf(found, lambda name: read.append(name) or np.zeros(2, np.float32))
    next(stream)
    assert read == ["a.0.w", "a.1.w", "a.2.w"]


def test_large_tensors_are_put_together_in_a_nameless_file(tmp_path, monkeypatch):
    monkeypatch.setattr("dim_jax.weights.arrays.LARGE", 20)
    found = tensor_mappings([Row("a.*.w", "a.kernel", SAME), Row("b.*.w", "b.kernel", SAME)], {"a.kernel": (3, 2), "b.kernel": (2, 2)})
    ours = dict(from_hf(found, lambda name: np.full(2, int(name[2]), np.float32), tmp_path))
    assert [isinstance(ours[path], np.memmap) for path in ("a.kernel", "b.kernel")] == [True, False]
    np.testing.assert_array_equal(ours["a.kernel"], [[0, 0], [1, 1], [2, 2]])
    assert list(tmp_path.iterdir()) == []


# Large arrays


@settings(max_examples=20)
@given(
    shape=st.lists(st.integers(1, 300), min_size=2, max_size=2),
    lead=st.integers(1, 3),
    dtype=st.sampled_from(DTYPES),
    order=st.permutations(range(3)),
)
def test_a_copy_in_tiles_is_a_copy(shape, lead, dtype, order):
    source = random((lead, *shape), dtype, np.random.default_rng(0)).transpose(order)
    assert same_bits(contiguous(source), np.ascontiguousarray(source))
    wide = np.empty(source.shape, np.float32)
    copy_into(wide, source)
    assert same_bits(wide, np.ascontiguousarray(source.astype(np.float32)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_single_non_finite_value_is_found(dtype, value):
    array = np.full((700, 1000), -1.5, dtype)
    assert is_finite(array)
    array[-1, -1] = value
    assert not is_finite(array)
    assert is_finite(array[:-1])


def test_same_bits_tells_minus_zero_from_zero():
    assert not same_bits(np.zeros(3, np.float32), -np.zeros(3, np.float32))
    assert not same_bits(np.zeros(3, np.float32), np.zeros(3, np.float16))
    assert not same_bits(np.zeros(3, np.float32), np.zeros((1, 3), np.float32))


def test_kinds_are_named_in_the_table():
    """A new kind must be tested above."""
    assert set(KINDS) == {kind for kind in vars(table).values() if isinstance(kind, Transform)}
