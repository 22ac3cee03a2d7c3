"""Shared layers against the plain formulas that they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from dim_jax.models import layers
from tests.abstract_meshes import GPU, on
from tests.sana_fixtures import normal


@pytest.mark.parametrize(("size", "bias"), [(3, True), (5, False)])
def test_depthwise_convolution_is_the_convolution(size, bias):
    conv = layers.DepthwiseConv(6, size, use_bias=bias, rngs=nnx.Rngs(0))
    if bias:
        conv.bias[...] = normal(6, seed=1)
    x = normal(2, 4, 7, 6)
    kernel = conv.kernel[...][:, :, None]
    expected = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=6)
    np.testing.assert_allclose(conv(x), expected + (conv.bias[...] if bias else 0), rtol=1e-5, atol=1e-5)


def test_linear_attention_is_attention_with_relu_kernels():
    q, k, v = normal(3, 2, 9, 2, 4)
    scores = np.einsum("blnk,bmnk->bnlm", np.maximum(q, 0), np.maximum(k, 0))
    expected = np.einsum("bnlm,bmnk->blnk", scores / (scores.sum(-1, keepdims=True) + 1e-8), v)
    np.testing.assert_allclose(layers.linear_attention(q, k, v, eps=1e-8), expected, rtol=1e-4, atol=1e-5)


def test_linear_attention_does_not_depend_on_the_scale_of_queries_and_keys():
    q, k, v = normal(3, 2, 9, 2, 4)
    expected = layers.linear_attention(q, k, v, eps=1e-8)
    np.testing.assert_allclose(layers.linear_attention(1.7 * q, 0.3 * k, v, eps=1e-8), expected, rtol=1e-5, atol=1e-6)


def test_linear_attention_of_gpus_rounds_only_its_results(monkeypatch):
    """Their products of bfloat16 sum in float32, as those of float32 do, which a CPU computes instead."""
    arrays = [x.astype(jnp.bfloat16) for x in normal(3, 2, 300, 3, 16)]
    expected, expected_gradients = jax.value_and_grad(attended, (0, 1, 2), has_aux=True)(*arrays)
    einsum = jnp.einsum
    monkeypatch.setattr(layers, "platform", lambda: "gpu")
    monkeypatch.setattr(jnp, "einsum", lambda how, *operands, **options: einsum(how, *(x.astype(jnp.float32) for x in operands)))
    found, gradients = jax.value_and_grad(attended, (0, 1, 2), has_aux=True)(*arrays)
    assert np.mean(found[1] != expected[1]) < 0.01  # with sums of one bfloat16 each, three in ten would differ
    for one, other in zip(gradients, expected_gradients, strict=True):
        one, other = one.astype(jnp.float32), other.astype(jnp.float32)
        assert jnp.linalg.norm(one - other) < 0.005 * jnp.linalg.norm(other)  # rounded in parts


def attended(q, k, v):
    y = layers.linear_attention(q, k, v, eps=1e-8)
    return (y.astype(jnp.float32) * jnp.cos(jnp.arange(16))).sum(), y


def test_linear_attention_adds_up_in_float32():
    """4096 equal tokens: a bfloat16 sum would stop growing at 256."""
    ones = jnp.ones((1, 4096, 1, 8), jnp.bfloat16)
    out = layers.linear_attention(ones, ones, ones, eps=1e-8)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out.astype(jnp.float32), 1)


def test_a_query_without_a_key_is_zero_not_nan():
    q, k, v = -jnp.ones((1, 3, 1, 4)), jnp.ones((1, 3, 1, 4)), jnp.ones((1, 3, 1, 4))
    np.testing.assert_array_equal(layers.linear_attention(q, k, v, eps=1e-8), 0)


def softmax_attention(q, k, v, allowed):
    """q and k with the same heads; allowed is (b, t, s)."""
    scores = np.einsum("btnk,bsnk->bnts", q, k) / q.shape[-1] ** 0.5
    weights = np.exp(scores - scores.max()) * allowed[:, None]
    return np.einsum("bnts,bsnk->btnk", weights / weights.sum(-1, keepdims=True), v)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", [None, [5, 2]])
def test_attention_masks_padding_and_future_keys(causal, lengths):
    q, k, v = (np.asarray(x) for x in normal(3, 2, 5, 2, 4))
    allowed = np.broadcast_to(np.tri(5) if causal else np.ones((5, 5)), (2, 5, 5))
    if lengths:
        allowed = allowed * (np.arange(5) < np.array(lengths)[:, None])[:, None]
    ours = layers.attention(*map(jnp.asarray, (q, k, v)), lengths=None if lengths is None else jnp.array(lengths), causal=causal)
    np.testing.assert_allclose(ours, softmax_attention(q, k, v, allowed), rtol=1e-4, atol=1e-5)


def test_attention_in_blocks_of_queries_is_the_same(monkeypatch):
    q, k, v = normal(3, 2, 10, 2, 4)
    lengths = jnp.array([10, 3])
    for causal in (False, True):
        whole = layers.attention(q, k, v, lengths=lengths, causal=causal)
        with monkeypatch.context() as patch:
            patch.setattr(layers, "QUERIES", 4)  # two whole blocks and a part of one
            blocks = layers.attention(q, k, v, lengths=lengths, causal=causal)
        np.testing.assert_allclose(blocks, whole, rtol=1e-5, atol=1e-6)


def test_stacked_layers_differ_and_run_in_order():
    stacked = layers.stack(lambda rngs: nnx.Linear(3, 3, rngs=rngs), 4, nnx.Rngs(0))
    kernels = stacked.kernel[...]
    assert kernels.shape == (4, 3, 3)
    assert len({float(kernel[0, 0]) for kernel in kernels}) == 4
    x, steps = normal(2, 3), jnp.arange(4.0)
    for remat in (None, (), ("x",)):
        out, sums = layers.scan(stacked, lambda layer, x, step: (layer(x) + step, x.sum()), x, steps, remat=remat)
        expected, seen = x, []
        for kernel, step in zip(kernels, steps, strict=True):
            seen.append(expected.sum())
            expected = expected @ kernel + step
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(sums, seen, rtol=1e-5, atol=1e-5)
    alone, _ = layers.scan(layers.unstack(stacked, 4), lambda layer, x, step: (layer(x) + step, None), x, list(steps))
    np.testing.assert_allclose(alone, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("tensor", "heads"), [(2, "tensor"), (4, None)])
def test_a_flash_kernel_gets_queries_keys_and_values_that_are_cut_alike(tensor, heads, monkeypatch):
    """cuDNN refuses others; of two key heads each of two devices takes one, and four cannot share them."""
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda q, k, v, **options: q)  # which looks for cuDNN
    q, k = (jax.ShapeDtypeStruct((4, 64, n, 64), jnp.bfloat16) for n in (8, 2))
    with on(1, 2, 1, tensor, device=GPU):
        program = jax.make_jaxpr(layers.attention)(q, k, k)
    constraints = [equation.params["sharding"].spec for equation in program.eqns if equation.primitive.name == "sharding_constraint"]
    assert constraints == [PartitionSpec(layers.BATCH_AXES, None, heads, None)] * 3
