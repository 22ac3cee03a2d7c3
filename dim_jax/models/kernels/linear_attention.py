"""SANA's linear attention from the projection to the heads' outputs in one kernel, for NVIDIA GPUs; and its gradient.

    q, k, v = split(qkv);  q^ = relu(norm(q)), k^ = relu(norm(k));  out_i = q^_i (sum_j k^_j v_j^T) / (q^_i . sum_j k^_j + eps)

A program owns one head of one picture and reads its columns of qkv as they lie, so nothing is split, transposed or kept in float32.
Products are of bfloat16 with float32 sums; the summed states enter products as two bfloat16 numbers each, high and low part.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

# Tokens at a time, and warps; tokens, channels at a time, and warps: the fastest on an H200, docs/reports/performance.md
FORWARD, BACKWARD, NORM_GRADIENT = (128, 4), (64, 2), (8, 1024, 8)


def _dot(a: Array, b: Array, *, trans_a: bool = False, trans_b: bool = False) -> Array:
    contract = ((0 if trans_a else 1,), (1 if trans_b else 0,))
    return jax.lax.dot_general(a, b, (contract, ((), ())), precision=jax.lax.Precision.DEFAULT, preferred_element_type=jnp.float32)


def _product(a: Array, b: Array, **transpose: bool) -> Array:
    """a b in float32, with b (float32) as a high and a low bfloat16."""
    high = b.astype(a.dtype)
    low = (b - high.astype(jnp.float32)).astype(a.dtype)
    return _dot(a, high, **transpose) + _dot(a, low, **transpose)


class _Head:
    def __init__(self, tokens: int, width: int, head: int, block: int):
        self.length, self.width, self.block = tokens, width, block
        self.picture, self.column = pl.program_id(0), pl.program_id(1) * head + jnp.arange(head)

    def at(self, n: Any, part: int = 0) -> Any:
        self.row = n * self.block + jnp.arange(self.block)
        return self.picture, self.row[:, None], (self.column + part * self.width)[None]

    def read(self, ref: Any, n: Any, part: int = 0) -> Array:
        at = self.at(n, part)
        return plgpu.load(ref.at[at], mask=(self.row < self.length)[:, None], other=0.0)

    def write(self, ref: Any, n: Any, value: Array, part: int = 0) -> None:
        at = self.at(n, part)
        plgpu.store(ref.at[at], value.astype(ref.dtype), mask=(self.row < self.length)[:, None])

    def normed(self, ref: Any, inverse: Any, scale: Any, n: Any, part: int) -> Array:
        """norm(x) before its ReLU, in the dtype of x."""
        x = self.read(ref, n, part)
        each = plgpu.load(inverse.at[part, self.picture, self.row], mask=self.row < self.length, other=0.0)
        weight = plgpu.load(scale.at[part, self.column])
        return (x.astype(jnp.float32) * each[:, None] * weight[None]).astype(x.dtype)

    def loop(self, step: Any, carry: Any) -> Any:
        return jax.lax.fori_loop(0, pl.cdiv(self.length, self.block), step, carry)

    def state(self, qkv: Any, inverse: Any, scale: Any, head: int) -> tuple[Array, Array]:
        """Sums over tokens of k^ v^T and of k^."""

        def add(n: Any, carry: Any) -> Any:
            state, total = carry
            k = jnp.maximum(self.normed(qkv, inverse, scale, n, 1), 0)
            return state + _dot(k, self.read(qkv, n, 2), trans_a=True), total + k.astype(jnp.float32).sum(0)

        return self.loop(add, (jnp.zeros((head, head), jnp.float32), jnp.zeros(head, jnp.float32)))


def _forward_kernel(qkv: Any, inverse: Any, scale: Any, out: Any, *, tokens: int, width: int, head: int, block: int, eps: float) -> None:
    own = _Head(tokens, width, head, block)
    state, total = own.state(qkv, inverse, scale, head)

    def answer(n: Any, carry: Any) -> Any:
        q = jnp.maximum(own.normed(qkv, inverse, scale, n, 0), 0)
        divisor = (q.astype(jnp.float32) * total[None]).sum(1) + eps
        own.write(out, n, _product(q, state) / divisor[:, None])
        return carry

    own.loop(answer, 0)


def _backward_kernel(
    qkv: Any, inverse: Any, scale: Any, change: Any, out: Any, *, tokens: int, width: int, head: int, block: int, eps: float
) -> None:
    """Gradients of norm(q), norm(k) and v, beside each other as in qkv."""
    own = _Head(tokens, width, head, block)
    state, total = own.state(qkv, inverse, scale, head)

    def queries(n: Any, carry: Any) -> Any:
        d_state, d_total = carry
        normed = own.normed(qkv, inverse, scale, n, 0)
        q = jnp.maximum(normed, 0)
        divisor = (q.astype(jnp.float32) * total[None]).sum(1) + eps
        dy = own.read(change, n).astype(jnp.float32)
        d_above = (dy / divisor[:, None]).astype(q.dtype)
        d_divisor = -(dy * _product(q, state)).sum(1) / (divisor * divisor)
        dq = _product(d_above, state, trans_b=True) + d_divisor[:, None] * total[None]
        own.write(out, n, jnp.where(normed > 0, dq, 0.0), 0)
        return d_state + _dot(q, d_above, trans_a=True), d_total + (q.astype(jnp.float32) * d_divisor[:, None]).sum(0)

    d_state, d_total = own.loop(queries, (jnp.zeros((head, head), jnp.float32), jnp.zeros(head, jnp.float32)))

    def keys(n: Any, carry: Any) -> Any:
        normed = own.normed(qkv, inverse, scale, n, 1)
        k, v = jnp.maximum(normed, 0), own.read(qkv, n, 2)
        dk = _product(v, d_state, trans_b=True) + d_total[None]
        own.write(out, n, jnp.where(normed > 0, dk, 0.0), 1)
        own.write(out, n, _product(k, d_state), 2)
        return carry

    own.loop(keys, 0)


def _norm_gradient_kernel(
    qkv: Any, inverse: Any, scale: Any, change: Any, out: Any, sums: Any, *, tokens: int, width: int, rows: int, columns: int
) -> None:
    """The gradients of q and k where `change` has those of norm(q) and norm(k), and these rows' part of the scales' gradients.

    A program owns some rows of q or of k; `out` is `change` itself, so v's columns stay as they are.
    """
    picture, group, part = (pl.program_id(i) for i in range(3))
    row = group * rows + jnp.arange(rows)
    each = plgpu.load(inverse.at[part, picture, row], mask=row < tokens, other=0.0)[:, None]

    def read(n: Any) -> Any:
        column = n * columns + jnp.arange(columns)
        at, mask = (picture, row[:, None], (column + part * width)[None]), (row < tokens)[:, None] & (column < width)[None]
        x, dn = (plgpu.load(ref.at[at], mask=mask, other=0.0).astype(jnp.float32) for ref in (qkv, change))
        return column, at, mask, x * each, dn, plgpu.load(scale.at[part, column], mask=column < width, other=0.0)[None]

    def add(n: Any, total: Array) -> Array:
        _, _, _, normed, dn, weight = read(n)
        return total + (dn * weight * normed).sum(1)

    steps = pl.cdiv(width, columns)
    mean = jax.lax.fori_loop(0, steps, add, jnp.zeros(rows, jnp.float32))[:, None] / width

    def write(n: Any, carry: Any) -> Any:
        column, at, mask, normed, dn, weight = read(n)
        plgpu.store(out.at[at], (each * (dn * weight - normed * mean)).astype(out.dtype), mask=mask)
        plgpu.store(sums.at[picture, group, part, column], (dn * normed).sum(0), mask=column < width)
        return carry

    jax.lax.fori_loop(0, steps, write, 0)


def _norm_gradient(
    qkv: Array, inverse: Array, scale: Array, change: Array, interpret: bool
) -> tuple[Float[Array, "b l d3"], Float[Array, "2 d"]]:
    (b, tokens, _), (_, width), (rows, columns, warps) = qkv.shape, scale.shape, NORM_GRADIENT
    programs = pl.cdiv(tokens, rows)
    body = partial(_norm_gradient_kernel, tokens=tokens, width=width, rows=rows, columns=columns)
    out = jax.ShapeDtypeStruct(qkv.shape, qkv.dtype), jax.ShapeDtypeStruct((b, programs, 2, width), jnp.float32)
    params = None if interpret else plgpu.CompilerParams(num_warps=warps, num_stages=2)
    d_qkv, sums = pl.pallas_call(
        body, grid=(b, programs, 2), out_shape=out, input_output_aliases={3: 0}, interpret=interpret, name="norm_gradient",
        compiler_params=params,
    )(qkv, inverse, scale, change)  # fmt: skip
    return d_qkv, sums.sum((0, 1))


def _run(
    kernel: Any, tiling: tuple[int, int], out: Any, name: str, qkv: Array, *others: Array, head: int, eps: float, interpret: bool
) -> Array:
    b, tokens, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    block, warps = tiling
    body = partial(kernel, tokens=tokens, width=width, head=head, block=block, eps=eps)
    params = None if interpret else plgpu.CompilerParams(num_warps=warps, num_stages=3)
    return pl.pallas_call(body, grid=(b, width // head), out_shape=out, interpret=interpret, name=name, compiler_params=params)(
        qkv, *others
    )


def _inverse(qkv: Array, eps: float) -> Float[Array, "2 b l"]:
    d = qkv.shape[-1] // 3
    q, k = qkv[..., :d].astype(jnp.float32), qkv[..., d : 2 * d].astype(jnp.float32)
    return jnp.stack([jax.lax.rsqrt(jnp.mean(x * x, -1) + eps) for x in (q, k)])


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def linear_attention(
    qkv: Float[Array, "b l d3"], scale: Float[Array, "2 d"], head: int, norm_eps: float, eps: float, interpret: bool
) -> Float[Array, "b l d"]:
    out = jax.ShapeDtypeStruct((*qkv.shape[:2], qkv.shape[2] // 3), qkv.dtype)
    return _run(
        _forward_kernel, FORWARD, out, "linear_attention", qkv, _inverse(qkv, norm_eps), scale, head=head, eps=eps, interpret=interpret
    )


def _linear_forward(qkv: Array, scale: Array, head: int, norm_eps: float, eps: float, interpret: bool) -> Any:
    return linear_attention(qkv, scale, head, norm_eps, eps, interpret), (qkv, scale)


def _linear_backward(head: int, norm_eps: float, eps: float, interpret: bool, residuals: Any, dy: Array) -> Any:
    qkv, scale = residuals
    inverse, like = _inverse(qkv, norm_eps), jax.ShapeDtypeStruct(qkv.shape, qkv.dtype)
    options: dict[str, Any] = {"head": head, "eps": eps, "interpret": interpret}
    change = _run(_backward_kernel, BACKWARD, like, "linear_attention_d", qkv, inverse, scale, dy, **options)
    d_qkv, d_scale = _norm_gradient(qkv, inverse, scale, change, interpret)
    return d_qkv, d_scale.astype(scale.dtype)


linear_attention.defvjp(_linear_forward, _linear_backward)
