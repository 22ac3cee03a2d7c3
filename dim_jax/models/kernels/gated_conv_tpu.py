"""SANA's gated depthwise convolution in one pass over memory, for TPUs; and its gradient. The formula is that of `gated_conv.py`.

Channels lie on sublanes and tokens on lanes, an order in which a product can write its result as well as in the other: both halves of the
channels then start at a tile, as 5600 lanes would not. A program owns all tokens of `CHANNELS` pairs of channels of a picture and goes
through them a tile of channels at a time: a neighbour is a rotation of lanes, with zeros outside of the picture. Sums are in float32
whatever the dtype of z. The gradient is one kernel, which computes c again.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

CHANNELS, ROWS = 128, 16  # pairs of channels of a program; of a tile of bfloat16
LANES = 128
MAX_TOKENS = 4096  # of a picture: the blocks of the gradient then fit in fast memory, of which a kernel has 16 MiB
WEIGHTS = 16  # of a channel: 9 taps, bias_in, bias_out, and what fills a tile


class _Picture(NamedTuple):
    """Where tokens lie: token p in row p // width and column p % width, `length` of them; lanes after them hold anything."""

    width: int
    length: int
    lanes: int

    def _token(self) -> Array:
        return jax.lax.broadcasted_iota(jnp.int32, (ROWS, self.lanes), 1)

    def known(self, x: Array) -> Array:
        """x, with zeros after the tokens."""
        return x if self.length == self.lanes else jnp.where(self._token() < self.length, x, 0.0)

    def beside(self, x: Array) -> tuple[Array, Array]:
        """Of each token, x of its left and of its right neighbour."""
        column = self._token() % self.width
        return (
            jnp.where(column > 0, pltpu.roll(x, 1, 1), 0.0),
            self.known(jnp.where(column < self.width - 1, pltpu.roll(x, self.lanes - 1, 1), 0.0)),
        )

    def above(self, x: Array) -> Array:
        return jnp.where(self._token() >= self.width, pltpu.roll(x, self.width % self.lanes, 1), 0.0)

    def below(self, x: Array) -> Array:
        return jnp.where(self._token() < self.length - self.width, pltpu.roll(x, (self.lanes - self.width) % self.lanes, 1), 0.0)


class _Half(NamedTuple):
    """What the gradient needs of one half of the channels besides c."""

    taps: list[list[Array]]
    beside: tuple[Array, Array, Array]  # u of the left neighbour, of the token, of the right one
    slope: Array  # of u by z


def _convolve(x: Array, weights: Array, picture: _Picture) -> tuple[Array, _Half]:
    """c, and what its gradient needs."""
    column = [weights[:, k : k + 1] for k in range(11)]
    taps = [column[3 * i : 3 * i + 3] for i in range(3)]
    x = x.astype(jnp.float32) + column[9]
    s = jax.nn.sigmoid(x)
    u = picture.known(x * s)
    left, right = picture.beside(u)
    rows = [taps[i][0] * left + taps[i][1] * u + taps[i][2] * right for i in range(3)]
    c = picture.above(rows[0]) + rows[1] + picture.below(rows[2]) + column[10]
    return c, _Half(taps, (left, u, right), s * (1 + x * (1 - s)))


def _for_tiles(weights: Any, turned: Any, step: Callable[[Any], None]) -> None:
    """`step(rows)` for each tile of channels; `turned` gets the weights of a channel beside each other, as they meet its tokens."""
    for half in range(2):
        turned[half] = jnp.pad(weights[half], ((0, LANES - WEIGHTS), (0, 0))).T

    def body(n: Any, carry: Any) -> Any:
        step(pl.ds(pl.multiple_of(n * ROWS, ROWS), ROWS))
        return carry

    jax.lax.fori_loop(0, CHANNELS // ROWS, body, 0)


def _forward_kernel(z: Any, weights: Any, y: Any, turned: Any, *, picture: _Picture) -> None:
    def step(rows: Any) -> None:
        a, g = (_convolve(z[0, half, rows], turned[half, rows], picture)[0] for half in range(2))
        y[0, rows] = (a * g * jax.nn.sigmoid(g)).astype(y.dtype)

    _for_tiles(weights, turned, step)


def _backward_kernel(z: Any, weights: Any, dy: Any, dz: Any, sums: Any, turned: Any, totals: Any, *, picture: _Picture) -> None:
    """dz, and this picture's part of the gradients of the weights, as they lie."""
    lane = jax.lax.broadcasted_iota(jnp.int32, (ROWS, LANES), 1)

    def step(rows: Any) -> None:
        (a, of_a), (g, of_g) = (_convolve(z[0, half, rows], turned[half, rows], picture) for half in range(2))
        change, s = dy[0, rows].astype(jnp.float32), jax.nn.sigmoid(g)
        changes = change * g * s, change * a * s * (1 + g * (1 - s))
        for half, (own, dc) in enumerate(zip((of_a, of_g), map(picture.known, changes), strict=True)):
            shifted = picture.below(dc), dc, picture.above(dc)  # what reaches c by the taps of each row
            du = [own.taps[0][j] * shifted[0] + own.taps[1][j] * shifted[1] + own.taps[2][j] * shifted[2] for j in range(3)]
            dx = picture.known((picture.beside(du[0])[1] + du[1] + picture.beside(du[2])[0]) * own.slope)
            dz[0, half, rows] = dx.astype(dz.dtype)
            parts = [*(shifted[i] * own.beside[j] for i in range(3) for j in range(3)), dx, dc]
            gathered = jnp.zeros((ROWS, LANES), jnp.float32)
            for k, part in enumerate(parts):
                gathered = jnp.where(lane == k, part.sum(1, keepdims=True), gathered)
            totals[half, rows] = gathered

    _for_tiles(weights, turned, step)
    for half in range(2):
        sums[0, half] = totals[half].T[:WEIGHTS]


def _run(w: int, interpret: bool, z: Array, weights: Array, *dy: Array) -> Any:
    """y; or, given dy as well, dz and each picture's part of the gradient of the weights."""
    b, _, f, length = z.shape
    picture = _Picture(w, length, pl.cdiv(length, LANES) * LANES)
    both = pl.BlockSpec((1, 2, CHANNELS, picture.lanes), lambda i, j: (i, 0, j, 0))
    half = pl.BlockSpec((1, CHANNELS, picture.lanes), lambda i, j: (i, j, 0))
    of_weights = pl.BlockSpec((2, WEIGHTS, CHANNELS), lambda i, j: (0, 0, j))
    if dy:
        kernel, name = _backward_kernel, "gated_conv_gradient"
        out = jax.ShapeDtypeStruct(z.shape, z.dtype), jax.ShapeDtypeStruct((b, *weights.shape), jnp.float32)
        out_specs = both, pl.BlockSpec((1, 2, WEIGHTS, CHANNELS), lambda i, j: (i, 0, 0, j))
    else:
        kernel, name, out, out_specs = _forward_kernel, "gated_conv", jax.ShapeDtypeStruct((b, f, length), z.dtype), half
    return pl.pallas_call(
        partial(kernel, picture=picture),
        grid=(b, pl.cdiv(f, CHANNELS)),
        in_specs=(both, of_weights, *(half for _ in dy)),
        out_specs=out_specs,
        out_shape=out,
        scratch_shapes=[pltpu.VMEM((2, CHANNELS, LANES), jnp.float32)] * (1 + len(dy)),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        interpret=interpret,
        name=name,
    )(z, weights, *dy)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _gated_conv(z: Float[Array, "b 2 f l"], weights: Float[Array, "2 16 f"], w: int, interpret: bool) -> Float[Array, "b f l"]:
    return _run(w, interpret, z, weights)


def _gated_conv_forward(z: Array, weights: Array, w: int, interpret: bool) -> Any:
    return _gated_conv(z, weights, w, interpret), (z, weights)


def _gated_conv_backward(w: int, interpret: bool, residuals: Any, dy: Array) -> Any:
    dz, sums = _run(w, interpret, *residuals, dy)
    return dz, sums.sum(0)


_gated_conv.defvjp(_gated_conv_forward, _gated_conv_backward)


def gated_conv(
    z: Float[Array, "b h w f2"],
    bias_in: Float[Array, " f2"],
    kernel: Float[Array, "3 3 f2"],
    bias_out: Float[Array, " f2"],
    interpret: bool,
) -> Float[Array, "b h w f"]:
    b, h, w, f2 = z.shape
    weights = jnp.concatenate([kernel.reshape(9, f2), bias_in[None], bias_out[None]]).astype(jnp.float32)
    weights = jnp.pad(weights, ((0, WEIGHTS - 11), (0, 0))).reshape(WEIGHTS, 2, f2 // 2).swapaxes(0, 1)
    halves = z.reshape(b, h * w, f2).swapaxes(1, 2).reshape(b, 2, f2 // 2, h * w)
    y: Any = _gated_conv(halves, weights, w, interpret)
    return y.swapaxes(1, 2).reshape(b, h, w, f2 // 2)
