"""The kernels, run step by step on the CPU, beside the same formulae: values and gradients, shapes that fit no tile, rows over devices."""

import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh

from dim_jax.models import fused, layers
from dim_jax.models.lora import LoRALinear
from tests.abstract_meshes import GPU, TPU, on
from tests.started import with_devices

ROOT = Path(__file__).parents[1]


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def gated_conv(implementation, *arguments):
    return fused.gated_conv(*arguments, implementation=implementation)


def linear_attention(implementation, *arguments):
    how = {"head_dim": 16, "norm_eps": 1e-5, "eps": 1e-8}
    return fused.normed_linear_attention(*arguments, **how, implementation=implementation)


def softmax_attention(implementation, *arguments, lengths=None, causal=False):
    lengths = None if lengths is None else jnp.asarray(lengths)
    return fused.attention(*arguments, lengths=lengths, causal=causal, implementation=implementation)


def heads(b, t, s, n, m, k):
    return normal(b, t, n, k), normal(b, s, m, k, seed=1), normal(b, s, m, k, seed=2)


def conv_arguments(b, h, w, f):
    return normal(b, h, w, 2 * f), normal(2 * f, seed=1), normal(3, 3, 2 * f, seed=2), normal(2 * f, seed=3)


def attention_arguments(b, l, d):  # noqa: E741 (letters as in shapes)
    return normal(b, l, 3 * d), 1 + 0.1 * normal(d, seed=1), 1 + 0.1 * normal(d, seed=2)


CASES = [
    ("triton", gated_conv, conv_arguments(2, 5, 7, 8)),  # smaller than a tile
    ("triton", gated_conv, conv_arguments(1, 8, 32, 16)),  # a whole number of tiles
    ("triton", gated_conv, conv_arguments(1, 3, 33, 300)),  # one column and some channels more
    ("triton", gated_conv, conv_arguments(1, 1, 1, 3)),
    ("mosaic", gated_conv, conv_arguments(2, 5, 7, 8)),
    ("mosaic", gated_conv, conv_arguments(1, 8, 32, 16)),
    ("mosaic", gated_conv, conv_arguments(1, 3, 43, 140)),  # one token and some channels more
    ("triton", linear_attention, attention_arguments(2, 35, 32)),
    ("triton", linear_attention, attention_arguments(1, 128, 48)),
    ("triton", linear_attention, attention_arguments(1, 129, 16)),
    ("mosaic", partial(softmax_attention, lengths=(150, 5)), heads(2, 40, 150, 2, 2, 112)),  # keys that do not count, or fill up a block
    ("mosaic", partial(softmax_attention, causal=True), heads(1, 140, 140, 4, 2, 16)),
    ("looped", gated_conv, conv_arguments(2, 5, 7, 8)),
    ("looped", gated_conv, conv_arguments(1, 1, 1, 3)),
]


@pytest.mark.parametrize(("kernel", "operation", "arguments"), CASES)
def test_a_kernel_computes_its_formula_and_the_gradient_of_it(kernel, operation, arguments):
    # Memory of a TPU is simulated as well where it takes no minutes: what lies outside of an array is no number.
    with pltpu.force_tpu_interpret_mode() if (kernel, operation) == ("mosaic", gated_conv) else nullcontext():
        check_kernel(kernel, operation, arguments)


def check_kernel(kernel, operation, arguments):
    def value_and_gradients(how, *arguments):
        value, backward = jax.vjp(partial(operation, how), *arguments)
        return value, backward(normal(*value.shape, seed=9))

    # One program each, which compiles in half the time of its many operations.
    ours, theirs = (jax.jit(value_and_gradients, static_argnums=0)(how, *arguments) for how in (kernel, "xla"))
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-4, atol=1e-5)
    for found, expected in zip(ours[1], theirs[1], strict=True):
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5 * float(jnp.abs(expected).max()))


def test_in_bfloat16_a_kernel_is_as_near_to_float32_as_its_formula():
    for kernel, operation, arguments in (CASES[1], CASES[5], CASES[8], CASES[10]):
        exact = operation("xla", *arguments)
        half = [x.astype(jnp.bfloat16) if x.ndim == arguments[0].ndim else x for x in arguments]
        errors = [jnp.abs(operation(how, *half) - exact).mean() for how in (kernel, "xla")]
        assert errors[0] < 1.1 * errors[1]


def test_tokens_without_a_positive_key_give_zeros():
    arguments = (-jnp.abs(normal(1, 20, 96)), jnp.ones(32), jnp.ones(32))
    for how in ("triton", "xla"):
        np.testing.assert_array_equal(linear_attention(how, *arguments), 0)


def test_the_kernel_is_chosen_by_the_devices_that_the_program_is_for(monkeypatch):
    """A step may be compiled for machines that are not here, and a model may be on the CPU beside a GPU."""
    half, full = jnp.zeros((2, 3), jnp.bfloat16), jnp.zeros((2, 3))
    cpu = Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1, 1), (*layers.BATCH_AXES, "tensor")).abstract_mesh
    programs = [(on(1, 1, 2, 1, device=GPU), "triton"), (on(1, 1, 1, 2, device=GPU), "xla"), (jax.sharding.use_abstract_mesh(cpu), "xla")]
    for program, chosen in programs:
        with program:
            assert fused._choose_implementation(half) == chosen
            assert fused._choose_implementation(full) == "xla"
    assert fused._choose_implementation(half) == "xla"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert fused._choose_implementation(half) == "triton"
    with jax.sharding.use_abstract_mesh(cpu):
        assert fused._choose_implementation(half) == "xla"
    with jax.default_device(jax.devices("cpu")[0]):
        assert fused._choose_implementation(half) == "xla"


def test_attention_on_a_tpu_takes_the_kernel_in_bfloat16():
    q, full, decoded = jnp.zeros((1, 2, 3, 4), jnp.bfloat16), jnp.zeros((1, 2, 3, 4)), jnp.zeros((1, 1, 3, 4), jnp.bfloat16)
    assert fused._choose_attention(q) == "xla"
    with on(1, 1, 2, 2, device=TPU):
        assert fused._choose_attention(q) == "mosaic"
        assert fused._choose_attention(full) == "xla"
        assert fused._choose_attention(decoded) == "xla"


def test_the_convolution_on_a_tpu_takes_the_kernel_where_a_device_has_pairs_of_channels():
    z, grouped = jnp.zeros((2, 8, 8, 12), jnp.bfloat16), jnp.zeros((2, 8, 8, 2, 6), jnp.bfloat16)
    full, large = jnp.zeros((2, 8, 8, 12)), jnp.zeros((2, 65, 64, 4), jnp.bfloat16)
    assert fused._choose_gated_conv(z) == "looped"
    with on(1, 1, 2, 1, device=TPU):
        assert fused._choose_gated_conv(z) == "mosaic"
        assert fused._choose_gated_conv(full) == "xla"
        assert fused._choose_gated_conv(large) == "xla"  # more tokens than fit in fast memory
    with on(1, 1, 2, 2, device=TPU):
        assert fused._choose_gated_conv(z) == "xla"  # one device has the halves a, the other g
        assert fused._choose_gated_conv(grouped) == "mosaic"


ON_DEVICES = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from functools import partial
from tests.test_fused import CASES, conv_arguments, gated_conv, heads, softmax_attention
from dim_jax.models.layers import BATCH_AXES
for (kernel, operation, arguments), copies in ((CASES[0], 4), (CASES[4], 4), (CASES[7], 4), (CASES[7], 1)):
    arguments = jnp.concatenate([arguments[0]] * copies), *arguments[1:]  # 8 rows, or 2, which all devices compute
    gradients = lambda *a: jax.grad(lambda *a: (operation(kernel, *a) ** 2).sum(), tuple(range(len(a))))(*a)
    expected = jax.jit(gradients)(*arguments)
    mesh = Mesh(np.array(jax.devices()).reshape(1, 2, 4, 1), (*BATCH_AXES, "tensor"), axis_types=(AxisType.Auto,) * 4)
    spread = jax.device_put(arguments[0], NamedSharding(mesh, P(BATCH_AXES) if copies == 4 else P()))
    with jax.set_mesh(mesh):
        found = jax.jit(gradients)(spread, *arguments[1:])
    assert len(found[0].sharding.device_set) == 8, found[0].sharding
    assert found[0].sharding.is_fully_replicated == (copies == 1), found[0].sharding
    for one, other in zip(found, expected):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)

mesh = Mesh(np.array(jax.devices()).reshape(1, 2, 2, 2), (*BATCH_AXES, "tensor"), axis_types=(AxisType.Auto,) * 4)
arguments = heads(4, 20, 20, 4, 2, 16)  # rows over four pairs of devices, heads over each pair
attend = lambda *a: softmax_attention("mosaic", *a, lengths=(20, 3, 1, 7))
expected = jax.jit(attend)(*arguments)
with jax.set_mesh(mesh):
    found = jax.jit(attend)(*jax.device_put(arguments, NamedSharding(mesh, P(BATCH_AXES, None, "tensor"))))
assert found.sharding.shard_shape(found.shape) == (1, 20, 2, 16), found.sharding
np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)

z, *weights = conv_arguments(4, 5, 7, 8)  # channels over each pair, which has its part of both halves
expected = jax.jit(partial(gated_conv, "xla"))(z, *weights)
in_groups = [x.reshape(*x.shape[:-1], 2, 2, 4).swapaxes(-3, -2).reshape(*x.shape[:-1], 2, 8) for x in (z, *weights)]
with jax.set_mesh(mesh):
    in_groups[0] = jax.device_put(in_groups[0], NamedSharding(mesh, P(BATCH_AXES, None, None, "tensor")))
    found = jax.jit(partial(gated_conv, "mosaic"))(*in_groups)
assert found.sharding.shard_shape(found.shape) == (1, 5, 7, 4), found.sharding
np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
print("equal")
"""


def test_on_a_mesh_every_device_runs_the_kernel_on_its_rows():
    run = subprocess.run([sys.executable, "-c", ON_DEVICES], capture_output=True, text=True, cwd=ROOT, env=with_devices(8), check=False)
    assert run.stdout.strip() == "equal", run.stderr[-3000:]


@pytest.mark.parametrize("kind", ["plain", "grouped", "lora"])
def test_a_product_for_each_of_several_results_gives_the_same(kind, monkeypatch):
    layer, x = nnx.Linear(6, 8, rngs=nnx.Rngs(0)), normal(2, 3, 6)
    layer.bias[...] = normal(8, seed=1)
    if kind == "grouped":  # two groups of a part of each result
        layer.kernel, layer.bias = nnx.Param(layer.kernel[...].reshape(6, 2, 4)), nnx.Param(layer.bias[...].reshape(2, 4))
    if kind == "lora":
        layer = LoRALinear(layer, 2, 0.5)
        layer.lora_a[...], layer.lora_b[...] = normal(6, 2, seed=2), normal(2, 8, seed=3)
    expected = fused.split_linear(layer, x, 2, "name")
    monkeypatch.setattr(layers, "platform", lambda: "gpu")
    for result, other in zip(fused.split_linear(layer, x, 2, "name"), expected, strict=True):
        assert result.shape == (2, 3, 4)
        np.testing.assert_allclose(result, other, rtol=1e-5, atol=1e-6)
