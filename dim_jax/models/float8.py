"""Products of linear layers in float8 (e4m3: three bits of mantissa), twice as fast as in bfloat16 on GPUs that have them (since H100).

Factors are scaled by powers of two whose product is 1, so that nothing has to be scaled back: a kernel and inputs of about 1 share the
kernel's smallness, since the format loses bits below 2**-6. "FP8 formats for deep learning" (arXiv 2209.05433) has the format.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dim_jax.models.quantized import dense

FLOAT8 = jnp.float8_e4m3fn
LARGEST = 448.0


class Float8Linear(nnx.Module):
    """A linear layer whose product is of float8 numbers with sums in float32; bias, input and output are in the dtype of `base`.

    The kernel is converted once, the input in each call; numbers that are too large for the format become its largest.
    """

    def __init__(self, base: nnx.Linear):
        kernel = dense(base.kernel[...], jnp.float32)
        size = jnp.maximum(jnp.sqrt(jnp.mean(kernel**2)), 1e-12)
        scale = jnp.exp2(jnp.round(-0.5 * jnp.log2(size)))
        self.kernel = nnx.Param(_to_float8(kernel * scale).T)  # as the products of GPUs read it: both factors along the summed axis
        self.input_scale = nnx.Param(1 / scale)
        self.bias, self.dtype = base.bias, base.dtype

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b f"]:
        y = self.product(x)
        return y if self.bias is None else y + self.bias[...].astype(y.dtype)

    def product(self, x: Float[Array, "*b d"]) -> Float[Array, "*b f"]:
        """Without the bias."""
        rows = _to_float8(x.reshape(-1, x.shape[-1]).astype(jnp.float32) * self.input_scale[...])
        contract = (((1,), (1,)), ((), ()))
        y = jax.lax.dot_general(
            rows, self.kernel[...], contract, precision=jax.lax.Precision.DEFAULT, preferred_element_type=self.dtype or x.dtype
        )
        return y.reshape(*x.shape[:-1], -1)


def _to_float8(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.clip(x, -LARGEST, LARGEST).astype(FLOAT8)
