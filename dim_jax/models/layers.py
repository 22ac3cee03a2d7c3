"""Layers that several networks share: stacks, attention, linear attention, depthwise convolution.

Parameters are created in float32; `dtype` is the dtype that a layer computes in.
"""

import math
from collections.abc import Callable, Collection
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Shaped

Layer = TypeVar("Layer", bound=nnx.Module)

BATCH_AXES = ("slices", "data", "fsdp")  # axes of a training mesh (dim_jax/sharding.py) that the rows of a batch are spread over
HEAD_AXIS = "tensor"  # the axis that cuts heads
UNROLLED, UNROLLED_ON_ONE_GPU = 8, 20  # layers at most of a stack that runs without a loop
QUERIES = 512  # at a time without a flash kernel; scores of 4 pictures, 16 heads, 5476 keys then take 0.7 GB, not 7.7


def stack(make: Callable[[nnx.Rngs], Layer], depth: int, rngs: nnx.Rngs) -> Layer:
    """`depth` layers made by `make(rngs)`, each with its own random stream, as one module with a leading layer axis."""

    @nnx.split_rngs(splits=depth)
    @nnx.vmap(in_axes=0, out_axes=0)
    def build(rngs: nnx.Rngs) -> Layer:
        return make(rngs)

    return build(rngs)


def unstack(stacked: Any, depth: int) -> list[Any]:
    """The layers of a stack (or values of each layer) as a list, which `scan` takes too.

    This is faster in a loop over steps on a GPU: products need contiguous weights, so each step would copy a stack layer by layer.
    """
    return [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(depth)]


def scan(
    layers: Layer | list[Layer],
    step: Callable[[Layer, Any, Any], tuple[Any, Any]],
    carry: Any,
    xs: Any = None,
    *,
    remat: Collection[str] | None = None,
) -> tuple[Any, Any]:
    """Run stacked layers in order: `carry, y = step(layer, carry, x)`, with `xs` and the returned `ys` stacked on axis 0.

    Compile time does not grow with depth, but for few layers (`unrolls`). With `remat` the backward pass recomputes each layer from its
    carry and from the results that `remat` names, by `jax.ad_checkpoint.checkpoint_name`, or "attention" for the results of a GPU's
    flash kernel. A list of layers, with `xs` as a list, runs one by one, without `ys`.
    """
    if isinstance(layers, list):
        for i, layer in enumerate(layers):
            carry, _ = step(layer, carry, None if xs is None else xs[i])
        return carry, None
    graphdef, state = nnx.split(layers)
    unroll = unrolls(len(jax.tree.leaves(state)[0]))

    def run(carry, parameters, x):
        return step(nnx.merge(graphdef, parameters), carry, x)

    if remat is not None:
        save_named, flash = jax.checkpoint_policies.save_only_these_names(*remat), "attention" in remat

        def policy(primitive: Any, *args: Any, **params: Any) -> Any:
            return (flash and primitive.name.startswith("dot_product_attention_fwd")) or save_named(primitive, *args, **params)

        # Without a loop the compiler would find what is computed again in the forward pass, and keep it.
        run = jax.checkpoint(run, policy=policy, prevent_cse=unroll)

    def body(carry, layer):
        parameters, x = layer
        return run(carry, _with_cast_kernels(graphdef, parameters) if unroll and remat is not None else parameters, x)

    return jax.lax.scan(body, carry, (state, xs), unroll=unroll)


def _with_cast_kernels(graphdef: Any, parameters: Any) -> Any:
    """A layer's parameters, kernels of linear layers in the dtype that these compute in: cast once, not in what is computed twice."""
    layer = nnx.merge(graphdef, parameters)
    for _, linear in nnx.iter_modules(layer):
        if isinstance(linear, nnx.Linear) and isinstance(kernel := linear.kernel[...], jax.Array):
            linear.kernel[...] = kernel.astype(linear.dtype or kernel.dtype)
    return nnx.state(layer)


def unrolls(depth: int) -> bool:
    """Whether a stack of so many layers runs without a loop, which copies the weights and the results of each layer, after filling the room
    for them with zeros: for few small layers that takes longer than what they compute (docs/reports/performance.md). On one GPU more
    layers do; on several, gathered parameters of many layers would lie in memory at once."""
    on_one_gpu = platform() == "gpu" and jax.sharding.get_abstract_mesh().size <= 1
    return depth <= (UNROLLED_ON_ONE_GPU if on_one_gpu else UNROLLED) and platform() != "tpu"


def platform() -> str:
    """What the traced program is for: "cpu", "gpu" or "tpu". That of the mesh that is set, else of the default device."""
    device = jax.sharding.get_abstract_mesh().abstract_device or jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    return device if isinstance(device, str) else getattr(device, "platform", jax.default_backend())


def batch_spec(rows: int) -> PartitionSpec | None:
    """How so many rows (or pictures) of a batch are spread over the mesh that is set; None where none is, or where they do not divide."""
    mesh = jax.sharding.get_abstract_mesh()
    if not set(BATCH_AXES) <= set(mesh.axis_names) or rows % math.prod(mesh.shape[axis] for axis in BATCH_AXES):
        return None
    return PartitionSpec(BATCH_AXES)


def shard_batch(x: Shaped[Array, "..."], axis: int = 0) -> Shaped[Array, "..."]:
    """`x` with the axis of its rows (or pictures) over the axes BATCH_AXES of the mesh that is set; as it is where they are not spread.

    Applied between layers. Rows and parameter widths are cut by the same mesh axis, so without it the compiler may cut activations by
    width, and every device computes the whole batch.
    """
    spec = batch_spec(x.shape[axis])
    return x if spec is None else jax.lax.with_sharding_constraint(x, PartitionSpec(*(None,) * axis, *spec))


def head_shards() -> int:
    """Into how many parts the mesh that is set cuts heads."""
    return jax.sharding.get_abstract_mesh().shape.get(HEAD_AXIS, 1)


def shard_pictures(x: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """`x` with its pictures over all axes of the mesh that is set, HEAD_AXIS last; as `shard_batch` where they do not divide."""
    if len(x) % head_shards() or batch_spec(len(x) // head_shards()) is None:
        return shard_batch(x)
    return jax.lax.with_sharding_constraint(x, PartitionSpec((*BATCH_AXES, HEAD_AXIS)))


def interleave(*arrays: Shaped[Array, "..."], axis: int = 0) -> Shaped[Array, "..."]:
    """The rows of arrays of one shape by turns, the first of each, then the second of each: what belongs to a row stays on its device."""
    x = jnp.stack(arrays, axis + 1)
    return shard_batch(x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :]), axis)


class DepthwiseConv(nnx.Module):
    """Depthwise k x k convolution, stride 1, zero padding, as k*k shifted multiply-adds that XLA fuses with their neighbours."""

    def __init__(self, d: int, size: int = 3, *, use_bias: bool = True, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.kernel = nnx.Param(nnx.initializers.normal(1 / size)(rngs.params(), (size, size, d)))
        self.bias = nnx.Param(jnp.zeros(d)) if use_bias else None
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        y = depthwise_conv(x.astype(self.dtype), self.kernel[...].astype(self.dtype))
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


def depthwise_conv(x: Float[Array, "b h w d"], kernel: Float[Array, "size size d"]) -> Float[Array, "b h w d"]:
    """Each channel by itself, stride 1, zero padding."""
    size, (_, h, w, _) = len(kernel), x.shape
    padded = jnp.pad(x, ((0, 0), (size // 2, size // 2), (size // 2, size // 2), (0, 0)))
    shifts = [(i, j) for i in range(size) for j in range(size)]
    return sum((padded[:, i : i + h, j : j + w] * kernel[i, j] for i, j in shifts), start=jnp.zeros((), x.dtype))


def rms_norm(x: Float[Array, "*b d"], scale: Float[Array, " d"], eps: float) -> Float[Array, "*b d"]:
    """x / sqrt(mean(x^2) + eps) * scale over the last axis, in float32; x's dtype out (RMSNorm, arXiv 1910.07467)."""
    wide = x.astype(jnp.float32)
    return (wide * (jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + eps) * scale)).astype(x.dtype)


def linear_attention(
    q: Float[Array, "b l n k"], k: Float[Array, "b l n k"], v: Float[Array, "b l n k"], *, eps: float
) -> Float[Array, "b l n k"]:
    """ReLU linear attention, sum_j (relu(q_i) . relu(k_j)) v_j / (sum_j relu(q_i) . relu(k_j) + eps), in float32; q's dtype out.

    Linear in the number of tokens l. Katharopoulos et al. (arXiv 2006.16236) with the ReLU of EfficientViT (arXiv 2205.14756).
    In bfloat16 nothing is copied to float32 on GPUs: products sum in float32, and the sums over tokens enter products as two numbers of
    bfloat16 each, high and low part. (TPUs would move more so, and CPUs have no such products.)
    """
    dtype = q.dtype
    q, k = jax.nn.relu(q), jax.nn.relu(k)
    halves = dtype == jnp.bfloat16 and platform() == "gpu"
    if not halves:
        q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    state = jnp.einsum("blnk,blnm->bnkm", k, v, preferred_element_type=jnp.float32)
    parts = [state]
    if halves:
        high = jax.lax.reduce_precision(state, 8, 7)  # to bfloat16; a cast there and back the compiler may leave out
        parts = [part.astype(jnp.bfloat16) for part in (high, state - high)]
    numerator = sum(jnp.einsum("blnk,bnkm->blnm", q, part, preferred_element_type=jnp.float32) for part in parts)
    denominator = jnp.einsum("blnk,bnk->bln", q.astype(jnp.float32), k.sum(1, dtype=jnp.float32))
    return (numerator / (denominator[..., None] + eps)).astype(dtype)


def heads_spec(*arrays: Shaped[Array, "b _ _ k"]) -> PartitionSpec:
    """How queries, keys and values have their rows and heads cut alike by the mesh that is set, as kernels ask.

    The compiler would choose for each by itself, and two key heads are not cut as sixteen query heads are.
    """
    mesh, rows = jax.sharding.get_abstract_mesh(), batch_spec(len(arrays[0]))
    heads = HEAD_AXIS if HEAD_AXIS in mesh.axis_names and all(x.shape[2] % mesh.shape[HEAD_AXIS] == 0 for x in arrays) else None
    return PartitionSpec(rows and rows[0], None, heads, None)


def _spread_alike(*arrays: Shaped[Array, "b _ _ k"]) -> list[Shaped[Array, "b _ _ k"]]:
    """Queries, keys and values, with rows and heads cut alike."""
    if jax.sharding.get_abstract_mesh().size <= 1:
        return list(arrays)
    spec = heads_spec(*arrays)
    return [jax.lax.with_sharding_constraint(x, spec) for x in arrays]


def attention(
    q: Float[Array, "b t n k"],
    k: Float[Array, "b s m k"],
    v: Float[Array, "b s m k"],
    *,
    lengths: Int[Array, " b"] | None = None,
    causal: bool = False,
) -> Float[Array, "b t n k"]:
    """softmax(q k^T / sqrt(k)) v, each of the m key heads serving n/m query heads; softmax in float32, q's dtype out.

    `lengths` (at least 1): how many keys of each row count, from the left. `causal`: query j sees the keys up to j.
    On a GPU in half precision the flash kernel of cuDNN runs, elsewhere blocks of queries, so that memory is linear in t.
    """
    t, s = q.shape[1], k.shape[1]
    if t > 1 and q.dtype in (jnp.bfloat16, jnp.float16) and platform() == "gpu":
        q, k, v = _spread_alike(q, k, v)
        return jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=lengths, is_causal=causal, implementation="cudnn")
    counts = None if lengths is None else (jnp.arange(s) < lengths[:, None])[:, None, None]

    def block(first: Int[Array, ""], q: Float[Array, "b queries n k"]) -> Float[Array, "b queries n k"]:
        mask = counts
        if causal:
            past = jnp.arange(s) <= first + jnp.arange(q.shape[1])[:, None]
            mask = past[None, None] if counts is None else past & counts
        return _attend(q, k, v, mask)

    if t <= QUERIES:
        return block(jnp.int32(0), q)
    blocks = -(-t // QUERIES)
    padded = jnp.pad(q, ((0, 0), (0, blocks * QUERIES - t), (0, 0), (0, 0)))
    queries = padded.reshape(q.shape[0], blocks, QUERIES, *q.shape[2:]).swapaxes(0, 1)
    out = jax.lax.map(lambda x: block(*x), (QUERIES * jnp.arange(blocks, dtype=jnp.int32), queries))
    return out.swapaxes(0, 1).reshape(padded.shape)[:, :t]


def _attend(
    q: Float[Array, "b t n k"], k: Float[Array, "b s m k"], v: Float[Array, "b s m k"], mask: Bool[Array, "#b 1 #t s"] | None
) -> Float[Array, "b t n k"]:
    """`attention` of all queries at once. On a CPU heads are moved before tokens first: else XLA moves the scores themselves, twice."""
    if platform() != "cpu" or q.shape[1] == 1:  # to a single query the keys are more than the scores
        return jax.nn.dot_product_attention(q, k, v, mask=mask)
    b, t, n, width = q.shape
    q = jnp.moveaxis(q.reshape(b, t, k.shape[2], -1, width), 1, 3)
    k, v = jnp.moveaxis(k, 1, 2), jnp.moveaxis(v, 1, 2)
    scores = jnp.einsum("bmgtk,bmsk->bmgts", q, k, preferred_element_type=jnp.float32) / width**0.5
    if mask is not None:
        scores = jnp.where(mask[:, None], scores, jnp.finfo(jnp.float32).min)
    y = jnp.einsum("bmgts,bmsk->bmgtk", jax.nn.softmax(scores).astype(v.dtype), v)
    return jnp.moveaxis(y, 3, 1).reshape(b, t, n, width)
