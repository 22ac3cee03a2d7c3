"""What language models and vision towers share: rotary embedding, gated MLP, norm."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from dim_jax.models import layers
from dim_jax.models.quantized import dense

DTYPES = ("bfloat16", "float16", "float32")  # of published tensors
ALIGNMENT = 8  # zeros up to a multiple of 8: cuBLAS's fast kernels sum over no other widths (the vision tower has 3420)


def frequencies(count: int, theta: float) -> Float[np.ndarray, " count"]:
    """Angle per position of each rotated pair, theta^(-i/count) (RoFormer, arXiv 2104.09864)."""
    return (1.0 / theta ** (np.arange(count, dtype=np.float32) / np.float32(count))).astype(np.float32)


def rotate(x: Float[Array, "b t n k"], angles: Float[Array, "b t half"]) -> Float[Array, "b t n k"]:
    """Rotate each pair (x_j, x_{j + k/2}) by its angle (radians), in float32; x's dtype out."""
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def at_picture_tokens(
    features: Float[Array, "*n f d"], picture_tokens: Int[Array, "b t"], otherwise: Float[Array, "b t d"] | float
) -> Float[Array, "*n b t d"]:
    """The feature of each token of a picture (`EncoderInputs.picture_tokens` has its number, -1 for other tokens), else `otherwise`."""
    return jnp.where((picture_tokens >= 0)[..., None], features[..., jnp.maximum(picture_tokens, 0), :], otherwise)


class GatedMLP(nnx.Module):
    """down(activation(gate(x)) * up(x)), of inner width f (SwiGLU, arXiv 2002.05202, by default)."""

    def __init__(
        self, d: int, f: int, *, use_bias: bool, activation: Callable[[Array], Array] = jax.nn.silu, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        self.activation = activation
        self.gate_proj = nnx.Linear(d, f, use_bias=use_bias, dtype=dtype, rngs=rngs)
        self.up_proj = nnx.Linear(d, f, use_bias=use_bias, dtype=dtype, rngs=rngs)
        self.down_proj = nnx.Linear(f, d, use_bias=use_bias, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        y = self.activation(self.gate_proj(x)) * self.up_proj(x)
        missing, cut = -y.shape[-1] % ALIGNMENT, jax.sharding.get_abstract_mesh().shape.get(layers.HEAD_AXIS, 1) > 1
        if not missing or cut or layers.platform() != "gpu":
            return self.down_proj(y)
        kernel, bias = dense(self.down_proj.kernel[...], y.dtype), self.down_proj.bias
        y = jnp.pad(y, ((0, 0), (0, 0), (0, missing))) @ jnp.pad(kernel, ((0, missing), (0, 0)))
        return y if bias is None else y + bias[...].astype(y.dtype)


def rms_norm(d: int, eps: float, rngs: nnx.Rngs) -> nnx.RMSNorm:
    """RMSNorm (arXiv 1910.07467) in float32, float32 out: the projection after it goes back to the compute dtype."""
    return nnx.RMSNorm(d, epsilon=eps, dtype=jnp.float32, rngs=rngs)
