"""What float32 means: products of float32 numbers in float32, on every device.

JAX's default is TensorFloat-32 on GPUs and passes of bfloat16 on TPUs, which is faster and moves a velocity by 1.5e-3 and a decoded picture
by 1e-2. Networks here say otherwise of every product, of those sums too that stay in float32 in a bfloat16 network. A default that
the user names (`jax.config.jax_default_matmul_precision`, JAX_DEFAULT_MATMUL_PRECISION) wins; the dtype "tf32" names one.
"""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

Args = ParamSpec("Args")
Result = TypeVar("Result")


def exact_products(function: Callable[Args, Result]) -> Callable[Args, Result]:
    """`function`, its products of float32 numbers in float32. bfloat16 products add up in float32 anyway; nothing changes for them."""

    @wraps(function)
    def run(*args: Args.args, **kwargs: Args.kwargs) -> Result:
        named = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
        with jax.default_matmul_precision(named or "highest"):
            return function(*args, **kwargs)

    return run


def compute_dtype(name: DTypeLike | None) -> np.dtype:
    """The dtype of a network: of that name, else bfloat16 on accelerators and float32 on the CPU.

    "tf32" is float32 with the accelerator's fast products, for the whole process: between float32 and bfloat16 in error and time.
    """
    if name == "tf32":
        jax.config.update("jax_default_matmul_precision", "tensorfloat32")
        return jnp.dtype(jnp.float32)
    return jnp.dtype(name or (jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16))
