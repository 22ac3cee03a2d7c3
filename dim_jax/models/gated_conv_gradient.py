"""The gradient of SANA's gated convolution on CPUs, picture by picture; `fused.gated_conv` is the formula.

Of a whole batch XLA writes all shifts of the activations to memory, eight arrays as large as the convolution's input, and keeps them for
the backward pass. Here it keeps the input alone, and the arrays of one picture stay in a core's cache.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

SIZE = 3


def gated_conv_gradient(
    arguments: tuple[Float[Array, "b h w f2"], Float[Array, " f2"], Float[Array, "3 3 f2"], Float[Array, " f2"]],
    dy: Float[Array, "b h w f"],
) -> tuple[Float[Array, "b h w f2"], Float[Array, " f2"], Float[Array, "3 3 f2"], Float[Array, " f2"]]:
    """The gradients of z, bias_in, kernel and bias_out, each in its dtype; computed in float32."""
    z, bias_in, kernel, bias_out = arguments
    entering, taps, leaving = (weight.astype(jnp.float32) for weight in (bias_in, kernel, bias_out))

    def step(totals: list[Array], inputs: Any) -> tuple[list[Array], Array]:
        x, change = (array.astype(jnp.float32) for array in inputs)
        x = x + entering
        s = jax.nn.sigmoid(x)
        shifted = _shifts(x * s)
        a, g = jnp.split(_weighted(shifted, taps) + leaving, 2, -1)
        t = jax.nn.sigmoid(g)
        dc = jnp.concatenate([change * g * t, change * a * t * (1 + g * (1 - t))], -1)
        dx = _weighted(_shifts(dc), taps[::-1, ::-1]) * s * (1 + x * (1 - s))
        sums = [(array * dc).sum((0, 1)) for array in shifted] + [dx.sum((0, 1)), dc.sum((0, 1))]
        return [total + one for total, one in zip(totals, sums, strict=True)], dx.astype(z.dtype)

    start = [jnp.zeros(z.shape[-1])] * (SIZE * SIZE + 2)
    (*dtaps, dentering, dleaving), dz = jax.lax.scan(step, start, (z, dy))
    dkernel = jnp.stack(dtaps).reshape(kernel.shape)
    return dz, dentering.astype(bias_in.dtype), dkernel.astype(kernel.dtype), dleaving.astype(bias_out.dtype)


# Not shared with `layers.depthwise_conv`: with one form for both, a nano training step took a tenth longer.
def _shifts(x: Float[Array, "h w f2"]) -> list[Float[Array, "h w f2"]]:
    """What each tap meets; zeros outside of the picture."""
    h, w, _ = x.shape
    padded = jnp.pad(x, ((1, 1), (1, 1), (0, 0)))
    return [padded[i : i + h, j : j + w] for i in range(SIZE) for j in range(SIZE)]


def _weighted(shifted: list[Float[Array, "h w f2"]], taps: Float[Array, "3 3 f2"]) -> Float[Array, "h w f2"]:
    return sum((x * tap for x, tap in zip(shifted, taps.reshape(SIZE * SIZE, -1), strict=True)), start=jnp.zeros((), jnp.float32))
