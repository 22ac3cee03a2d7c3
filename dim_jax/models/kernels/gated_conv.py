"""SANA's gated depthwise convolution in one pass over memory, for NVIDIA GPUs: bias, SiLU, 3x3 depthwise, bias, gate; and its gradient.

    u = silu(z + bias_in);  c = depthwise3x3(u) + bias_out;  a, g = split(c);  y = a * silu(g)

XLA makes several passes of it, forward and backward, over arrays that are five times as wide as the network. Here the forward pass reads
z once and writes y; the backward pass reads z and dy and writes the gradient of c, then reads both again and writes that of z. Sums are
in float32 whatever the dtype of z. Written in Pallas for Triton: a program owns a tile of `ROWS` rows (`Tiling`), goes from column to
column, and keeps in registers what the next columns need, so that a value is read and activated about once. It reads a column ahead.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

ROWS = 4


class Tiling(NamedTuple):
    """What a program owns beside its rows: columns, at most so many channels, and the warps that work on them."""

    columns: int
    channels: int
    warps: int

    def tiles(self, h: int, w: int) -> int:
        """Of a picture's channel."""
        return pl.cdiv(h, ROWS) * pl.cdiv(w, self.columns)


TILING = Tiling(32, 128, 2)  # the fastest of 36 on an H200, docs/reports/performance.md


class _Tile:
    """Which part of the picture a program owns, and access to columns of it. What lies outside of the picture reads as zero."""

    def __init__(self, shape: tuple[int, int, int], columns: int, channels: int):
        self.h, self.w, self.f = shape
        across = pl.cdiv(self.w, columns)
        self.picture = pl.program_id(0)
        self.row, self.column = pl.program_id(1) // across * ROWS, pl.program_id(1) % across * columns
        self.channel = pl.program_id(2) * channels + jnp.arange(channels)
        self.known = self.channel < self.f

    def vector(self, ref: Any, *at: Any, offset: int = 0) -> Array:
        return plgpu.load(ref.at[(*at, self.channel + offset)], mask=self.known, other=0.0).astype(jnp.float32)

    def taps(self, ref: Any, offset: int = 0) -> list[list[Array]]:
        return [[self.vector(ref, i, j, offset=offset) for j in range(3)] for i in range(3)]

    def inside(self, row: Any, column: Any) -> Any:
        return (row >= 0) & (row < self.h) & (column >= 0) & (column < self.w)

    def read(self, ref: Any, row: Any, column: Any, offset: int = 0) -> Array:
        at = (self.picture, jnp.clip(row, 0, self.h - 1), jnp.clip(column, 0, self.w - 1), self.channel + offset)
        return plgpu.load(ref.at[at], mask=self.known & self.inside(row, column), other=0.0)

    def write(self, ref: Any, row: Any, column: Any, value: Array, when: Any, offset: int = 0) -> None:
        at = (self.picture, row, column, self.channel + offset)
        plgpu.store(ref.at[at], value.astype(ref.dtype), mask=self.known & self.inside(row, column) & when)


def _silu(half: Array, tanh: Callable[[Array], Array]) -> Array:
    """silu(x) = x sigmoid(x) of half x: three instructions with the approximate tanh."""
    return half * tanh(half) + half


def _silu_and_slope(half: Array, tanh: Callable[[Array], Array]) -> tuple[Array, Array]:
    t = tanh(half)
    silu, sigmoid = half * t + half, 0.5 * t + 0.5
    return silu, sigmoid + silu * (1 - sigmoid)


def _loop_ahead(steps: int, fetch: Callable[[Any], Any], step: Callable[[Any, Any, Any], Any], carry: Any) -> Any:
    """`carry = step(n, fetch(n), carry)` for each n below `steps`; its last value.

    `fetch(n)` reads memory while step n - 1 computes, and once at n = `steps`, where it must read nothing that is not there.
    """

    def run(n: Any, carry: Any) -> Any:
        fetched, rest = carry
        return fetch(n + 1), step(n, fetched, rest)

    return jax.lax.fori_loop(0, steps, run, (fetch(0), carry))[1]


def _forward_kernel(*refs: Any, shape: tuple[int, int, int], columns: int, channels: int, tanh: Callable[[Array], Array]) -> None:
    """y; or, given dy as well, the gradient of c. Column q of u adds to the columns q - 1, q and q + 1 of c."""
    z, bias_in, kernel, bias_out, *dy, out = refs
    tile, halves = _Tile(shape, columns, channels), (0, shape[2])
    entering = [0.5 * tile.vector(bias_in, offset=half) for half in halves]
    leaving = [tile.vector(bias_out, offset=half) for half in halves]
    taps = [tile.taps(kernel, half) for half in halves]

    def fetch(n: Any) -> Any:
        column = tile.column - 1 + n
        rows = tuple(tuple(tile.read(z, tile.row + o, column, half) for o in range(-1, ROWS + 1)) for half in halves)
        return rows, tuple(tile.read(change, tile.row + o, column - 1) for change in dy for o in range(ROWS))

    def step(n: Any, fetched: Any, carry: Any) -> Any:
        (rows, changes), column, after, done = fetched, tile.column - 1 + n, [], []
        for half in range(2):
            u = []
            for o, row in enumerate(rows[half], -1):
                x = _silu(0.5 * row.astype(jnp.float32) + entering[half], tanh)
                u.append(jnp.where(tile.inside(tile.row + o, column), x, 0.0))
            sums = [[sum(taps[half][i][j] * u[o + i] for i in range(3)) for j in range(3)] for o in range(ROWS)]
            done.append([carry[half][o][0] + sums[o][2] + leaving[half] for o in range(ROWS)])
            after.append(tuple((carry[half][o][1] + sums[o][1], sums[o][0]) for o in range(ROWS)))
        for o, (a, g) in enumerate(zip(*done, strict=True)):
            at = tile.row + o, column - 1
            if not dy:
                tile.write(out, *at, a * _silu(0.5 * g, tanh), n >= 2)
            else:
                change, (gate, slope) = changes[o].astype(jnp.float32), _silu_and_slope(0.5 * g, tanh)
                tile.write(out, *at, change * gate, n >= 2)
                tile.write(out, *at, change * a * slope, n >= 2, shape[2])
        return tuple(after)

    zeros = jnp.zeros(channels, jnp.float32)
    _loop_ahead(columns + 2, fetch, step, (((zeros, zeros),) * ROWS,) * 2)


def _backward_kernel(
    z: Any, bias_in: Any, kernel: Any, dc: Any, dz: Any, sums: Any,
    *, shape: tuple[int, int, int], columns: int, channels: int, tanh: Callable[[Array], Array],
) -> None:  # fmt: skip
    """dz, and this tile's part of the gradients of the nine taps, of bias_in and of bias_out.

    Column q of dc adds to the columns q - 1, q and q + 1 of du, and meets the same columns of u in the gradients of the taps.
    """
    tile = _Tile(shape, columns, channels)
    entering, taps = 0.5 * tile.vector(bias_in), tile.taps(kernel)

    def fetch(n: Any) -> Any:
        column = tile.column - 1 + n
        changes = tuple(tile.read(dc, tile.row + o, column) for o in range(-1, ROWS + 1))
        return changes, tuple(tile.read(z, tile.row + o, column + 1) for o in range(ROWS))

    def step(n: Any, fetched: Any, carry: Any) -> Any:
        (totals, rows), column, after = carry, tile.column - 1 + n, []
        totals, change = list(totals), [x.astype(jnp.float32) for x in fetched[0]]
        owned = (n >= 1) & (n <= columns)
        for o, (ending, running, before, now) in enumerate(rows):
            own = tile.inside(tile.row + o, column + 1) & (n < columns)
            values = _silu_and_slope(0.5 * fetched[1][o].astype(jnp.float32) + entering, tanh)
            next_u = tuple(jnp.where(own, value, 0.0) for value in values)
            for i in range(3):
                for j, (u, _) in enumerate((before, now, next_u)):
                    totals[3 * i + j] += change[o + 2 - i] * u
            added = [sum(taps[i][j] * change[o + 2 - i] for i in range(3)) for j in range(3)]
            dx = (ending + added[0]) * before[1]
            tile.write(dz, tile.row + o, column - 1, dx, n >= 2)
            totals[9] += dx
            totals[10] += jnp.where(owned, change[o + 1], 0.0)
            after.append((running + added[1], added[2], now, next_u))
        return tuple(totals), tuple(after)

    zeros = jnp.zeros(channels, jnp.float32)
    row = zeros, zeros, (zeros, zeros), (zeros, zeros)
    totals, _ = _loop_ahead(columns + 2, fetch, step, ((zeros,) * 11, (row,) * ROWS))
    for k, total in enumerate(totals):
        plgpu.store(sums.at[tile.picture, pl.program_id(1), k, tile.channel], total, mask=tile.known)


def _run(kernel: Any, width: int, out: Any, name: str, z: Array, *others: Array, interpret: bool) -> Any:
    b, h, w, _ = z.shape
    channels = min(TILING.channels, pl.next_power_of_2(width))
    grid = b, TILING.tiles(h, w), pl.cdiv(width, channels)
    tanh = jnp.tanh if interpret or z.dtype == jnp.float32 else plgpu.approx_tanh  # within 3e-4, which bfloat16 cannot see
    columns = min(TILING.columns, w)  # a small picture is one tile, and its program ends with it
    body = partial(kernel, shape=(h, w, width), columns=columns, channels=channels, tanh=tanh)
    params = None if interpret else plgpu.CompilerParams(num_warps=TILING.warps, num_stages=1)
    return pl.pallas_call(body, grid=grid, out_shape=out, interpret=interpret, name=name, compiler_params=params)(z, *others)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def gated_conv(
    z: Float[Array, "b h w f2"],
    bias_in: Float[Array, " f2"],
    kernel: Float[Array, "3 3 f2"],
    bias_out: Float[Array, " f2"],
    interpret: bool,
) -> Float[Array, "b h w f"]:
    out = jax.ShapeDtypeStruct((*z.shape[:3], z.shape[3] // 2), z.dtype)
    return _run(_forward_kernel, z.shape[3] // 2, out, "gated_conv", z, bias_in, kernel, bias_out, interpret=interpret)


def _gated_conv_forward(z: Array, bias_in: Array, kernel: Array, bias_out: Array, interpret: bool) -> Any:
    return gated_conv(z, bias_in, kernel, bias_out, interpret), (z, bias_in, kernel, bias_out)


def _gated_conv_backward(interpret: bool, residuals: Any, dy: Array) -> Any:
    z, bias_in, kernel, bias_out = residuals
    b, h, w, f2 = z.shape
    like = jax.ShapeDtypeStruct(z.shape, z.dtype)
    dc = _run(_forward_kernel, f2 // 2, like, "gated_conv_dc", z, bias_in, kernel, bias_out, dy, interpret=interpret)
    out = like, jax.ShapeDtypeStruct((b, TILING.tiles(h, w), 11, f2), jnp.float32)
    dz, sums = _run(_backward_kernel, f2, out, "gated_conv_dz", z, bias_in, kernel, dc, interpret=interpret)
    total = sums.sum((0, 1))
    return dz, total[9].astype(bias_in.dtype), total[:9].reshape(3, 3, f2).astype(kernel.dtype), total[10].astype(bias_out.dtype)


gated_conv.defvjp(_gated_conv_forward, _gated_conv_backward)
