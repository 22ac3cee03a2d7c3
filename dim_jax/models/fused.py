"""The operations with a kernel: each in plain JAX and as a kernel, with a dispatcher.

SANA's gated convolution and linear attention have kernels for NVIDIA GPUs in half precision; the gated convolution and softmax attention
have kernels for TPUs in bfloat16 (on GPUs `layers.attention` takes cuDNN's); plain JAX runs elsewhere and in float32, on CPUs with
a gradient of our own for the gated convolution. On a mesh every device runs the kernel on its own rows, and on its own channels or heads
where it has whole ones. Pallas' backend for Triton is deprecated since jax 0.11, and kernels for TPUs are part of jax.experimental; without
them plain JAX runs.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from dim_jax.models import layers
from dim_jax.models.float8 import Float8Linear
from dim_jax.models.gated_conv_gradient import gated_conv_gradient
from dim_jax.models.lora import LoRALinear
from dim_jax.models.quantized import dense

try:
    from dim_jax.models.kernels import gated_conv as gated_conv_kernel
    from dim_jax.models.kernels import linear_attention as linear_attention_kernel
except ImportError:
    gated_conv_kernel = linear_attention_kernel = None
try:
    from dim_jax.models.kernels import gated_conv_tpu as gated_conv_tpu_kernel
    from dim_jax.models.kernels import splash_attention as splash_attention_kernel
except ImportError:
    gated_conv_tpu_kernel = splash_attention_kernel = None

# Plain JAX, the same with a gradient picture by picture, a kernel for NVIDIA GPUs, one for TPUs. On the CPU a kernel runs step by step, for
# tests.
Implementation = Literal["xla", "looped", "triton", "mosaic"]


def linear(layer: nnx.Linear | Float8Linear, x: Float[Array, "*b d"]) -> Float[Array, "*b f"] | Float[Array, "*b groups part"]:
    """`layer(x)`, whose columns are in groups as those of its kernel and bias are (`Sharding.gather`)."""
    kernel = layer.kernel[...]
    if kernel.ndim == 2:
        return layer(x)
    assert isinstance(layer, nnx.Linear)
    y = _product(layer, x.astype(layer.dtype), kernel.astype(layer.dtype))
    return y if layer.bias is None else y + layer.bias[...].astype(y.dtype)


def split_columns(y: Float[Array, "..."], parts: int, rows: int) -> list[Float[Array, "..."]]:
    """The `parts` results that lie beside each other in the columns of y, the axes after the first `rows`: in one group or in several."""
    return [part.reshape(*y.shape[:rows], -1) for part in jnp.split(y, parts, -1)]


def split_linear(layer: nnx.Linear, x: Float[Array, "b t d"], parts: int, name: str) -> list[Float[Array, "b t f"]]:
    """The `parts` results beside each other in the columns of `layer(x)`, which may be saved for the backward pass as `name`.

    On GPUs each by a product of its own: so the kernel is split and its gradient joined, not the results, which are larger where many
    tokens are trained on. On TPUs with parts of kernels on several devices that sends more (docs/reports/tpu.md).
    """
    if layers.platform() != "gpu":
        return split_columns(checkpoint_name(linear(layer, x), name), parts, 2)
    assert layer.bias is not None
    dtype = layer.dtype or x.dtype
    x, kernels = x.astype(dtype), jnp.split(dense(layer.kernel[...], dtype), parts, -1)
    results = [
        _product(layer, x, kernel) + bias for kernel, bias in zip(kernels, jnp.split(layer.bias[...].astype(dtype), parts, -1), strict=True)
    ]
    if isinstance(layer, LoRALinear):
        results = [result + branch for result, branch in zip(results, jnp.split(layer.branch(x), parts, -1), strict=True)]
    return [checkpoint_name(result, name).reshape(*x.shape[:2], -1) for result in results]


def gated_conv(
    z: Float[Array, "b h w *f2"],
    bias_in: Float[Array, "*f2"],
    kernel: Float[Array, "3 3 *f2"],
    bias_out: Float[Array, "*f2"],
    *,
    implementation: Implementation | None = None,
) -> Float[Array, "b h w f"]:
    """a * silu(g) with a, g = split(depthwise3x3(silu(z + bias_in)) + bias_out): the inside of SANA's Mix-FFN (arXiv 2410.10629)."""
    chosen = implementation or _choose_gated_conv(z)
    if chosen == "looped":
        return _map_over_batch(_gated_conv_looped, z, bias_in, kernel, bias_out)
    if chosen != "xla":
        module = gated_conv_kernel if chosen == "triton" else gated_conv_tpu_kernel
        assert module is not None
        interpret, run = layers.platform() == "cpu", module.gated_conv

        def flatten_and_run(z: Array, *weights: Array) -> Array:  # a device has one group of columns
            bias_in, kernel, bias_out = (x.reshape(*x.shape[:rows], -1) for x, rows in zip(weights, (0, 2, 0), strict=True))
            return run(z.reshape(*z.shape[:3], -1), bias_in, kernel, bias_out, interpret)

        batch, axis = layers.batch_spec(len(z)), layers.HEAD_AXIS if z.ndim == 5 else None
        spec, vector = PartitionSpec(batch and batch[0], None, None, axis), PartitionSpec(axis)
        return _run_on_mesh(flatten_and_run, (spec, vector, PartitionSpec(None, None, axis), vector), spec, z, bias_in, kernel, bias_out)
    return _gated_conv(z, bias_in, kernel, bias_out)


def _gated_conv(z: Array, bias_in: Array, kernel: Array, bias_out: Array) -> Array:
    bias_in, kernel, bias_out = (weight.astype(z.dtype) for weight in (bias_in, kernel, bias_out))
    x = jax.nn.silu(z + bias_in).reshape(*z.shape[:3], -1)
    a, g = split_columns(layers.depthwise_conv(x, kernel.reshape(3, 3, -1)).reshape(z.shape) + bias_out, 2, 3)
    return a * jax.nn.silu(g)


_gated_conv_looped = jax.custom_vjp(_gated_conv)
_gated_conv_looped.defvjp(lambda *arguments: (_gated_conv(*arguments), arguments), gated_conv_gradient)


def inverted_gated_conv(
    x: Float[Array, "b h w d"], widen: nnx.Linear | Float8Linear, depthwise: layers.DepthwiseConv
) -> Float[Array, "b h w f"]:
    """`gated_conv` of `widen(x)`, in the dtype of `depthwise`; the product may be saved for the backward pass as "inverted"."""
    assert widen.bias is not None
    assert depthwise.bias is not None
    size, x = x.shape[:3], x.reshape(len(x), -1, x.shape[-1])  # tokens in one axis: the kernel for TPUs needs no copy of z then
    if isinstance(widen, Float8Linear):
        z = widen.product(x)
    else:
        z = _product(widen, x.astype(depthwise.dtype), dense(widen.kernel[...], depthwise.dtype))
    if isinstance(widen, LoRALinear):
        z = z + widen.branch(x)
    z = checkpoint_name(z, "inverted")
    return gated_conv(z.reshape(*size, *z.shape[2:]), widen.bias[...], depthwise.kernel[...], depthwise.bias[...])


def normed_linear_attention(
    qkv: Float[Array, "b l *d3"],
    q_scale: Float[Array, " d"],
    k_scale: Float[Array, " d"],
    *,
    head_dim: int,
    norm_eps: float,
    eps: float,
    implementation: Implementation | None = None,
) -> Float[Array, "b l d"]:
    """`layers.linear_attention` of q, k, v = split(qkv), q and k normalised over their whole width first (RMSNorm, arXiv 1910.07467)."""
    chosen = implementation or _choose_implementation(qkv)
    if chosen != "xla":
        assert linear_attention_kernel is not None
        interpret, run = layers.platform() == "cpu", linear_attention_kernel.linear_attention
        scales = jnp.stack([q_scale, k_scale]).astype(jnp.float32)
        return _map_over_batch(lambda qkv, scales: run(qkv, scales, head_dim, norm_eps, eps, interpret), qkv, scales)
    q, k, v = split_columns(qkv, 3, 2)
    q, k, v = (
        y.reshape(*y.shape[:2], -1, head_dim) for y in (layers.rms_norm(q, q_scale, norm_eps), layers.rms_norm(k, k_scale, norm_eps), v)
    )
    return layers.linear_attention(q, k, v, eps=eps).reshape(*qkv.shape[:2], -1)


def attention(
    q: Float[Array, "b t n k"],
    k: Float[Array, "b s m k"],
    v: Float[Array, "b s m k"],
    *,
    lengths: Int[Array, " b"] | None = None,
    causal: bool = False,
    implementation: Implementation | None = None,
) -> Float[Array, "b t n k"]:
    """`layers.attention`, which says what it computes; on a TPU by the splash kernel."""
    chosen = implementation or _choose_attention(q)
    if chosen == "xla":
        return layers.attention(q, k, v, lengths=lengths, causal=causal)
    assert splash_attention_kernel is not None
    interpret, kernel = layers.platform() == "cpu", splash_attention_kernel.attention

    def run(q: Array, k: Array, v: Array, *lengths: Array) -> Array:
        return kernel(q, k, v, lengths[0] if lengths else None, causal, interpret)

    arrays = q, k, v, *(() if lengths is None else (lengths,))
    heads = layers.heads_spec(q, k)
    specs = heads, heads, heads, *(() if lengths is None else (PartitionSpec(heads[0]),))
    return _run_on_mesh(run, specs, heads, *arrays)


def _product(
    layer: nnx.Linear, x: Float[Array, "*b d"], kernel: Float[Array, "d f"] | Float[Array, "d groups part"]
) -> Float[Array, "..."]:
    """x and a kernel of `layer`, or a part of it, multiplied as the layer multiplies."""
    flat = kernel if kernel.ndim == 2 else _flatten_groups(kernel)
    return layer.dot_general(x, flat, (((x.ndim - 1,), (0,)), ((), ()))).reshape(*x.shape[:-1], *kernel.shape[1:])


@jax.custom_vjp
def _flatten_groups(kernel: Float[Array, "d groups part"]) -> Float[Array, "d f"]:
    """One axis of columns. The gradient has that shape until it is summed over devices: the compiler scatters no sum of three axes."""
    return kernel.reshape(len(kernel), -1)


_flatten_groups.defvjp(
    lambda kernel: (_flatten_groups(kernel), kernel.shape),
    lambda shape, change: (jax.lax.optimization_barrier(change).reshape(shape),),
)


def _choose_attention(q: Array) -> Implementation:
    flash = splash_attention_kernel is not None and layers.platform() == "tpu"
    return "mosaic" if flash and q.dtype == jnp.bfloat16 and q.shape[1] > 1 else "xla"


def _choose_gated_conv(z: Array) -> Implementation:
    if layers.platform() == "cpu":
        return "looped" if _batch_only() else "xla"
    if layers.platform() != "tpu":
        return _choose_implementation(z)
    if gated_conv_tpu_kernel is None or z.dtype != jnp.bfloat16 or z.shape[1] * z.shape[2] > gated_conv_tpu_kernel.MAX_TOKENS:
        return "xla"
    own_columns = _batch_only() if z.ndim == 4 else layers.head_shards() == z.shape[3]
    return "mosaic" if own_columns else "xla"


def _choose_implementation(x: Array) -> Implementation:
    half = x.dtype in (jnp.bfloat16, jnp.float16)
    return "triton" if half and _batch_only() and gated_conv_kernel is not None and layers.platform() == "gpu" else "xla"


def _batch_only() -> bool:
    """Whether the mesh that is set cuts nothing but the rows of a batch."""
    mesh = jax.sharding.get_abstract_mesh()
    return all(size == 1 or axis in layers.BATCH_AXES for axis, size in mesh.shape.items())


def _map_over_batch(run: Callable[..., Array], x: Array, *weights: Array) -> Array:
    """`run(x, *weights)`, by every device on its own rows of x, or on all where they do not divide; the compiler cuts no kernel."""
    rows = layers.batch_spec(len(x)) or PartitionSpec()
    return _run_on_mesh(run, (rows, *(PartitionSpec() for _ in weights)), rows, x, *weights)


def _run_on_mesh(run: Callable[..., Array], in_specs: Sequence[PartitionSpec], out_specs: PartitionSpec, *arrays: Array) -> Array:
    """`run(*arrays)`, by every device of the mesh that is set on its own parts."""
    if jax.sharding.get_abstract_mesh().size <= 1:
        return run(*arrays)
    return jax.shard_map(run, in_specs=tuple(in_specs), out_specs=out_specs, check_vma=False)(*arrays)
