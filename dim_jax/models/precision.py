"""Exact float32: products of float32 numbers are computed in float32 on every device.

JAX's default is TensorFloat-32 on GPUs and passes of bfloat16 on TPUs, which is faster but changes a velocity by 1.5e-3 and a decoded
picture by 1e-2. The networks here ask for exact products everywhere, also for float32 sums inside a bfloat16 network. A default that the
user sets (`jax.config.jax_default_matmul_precision`, JAX_DEFAULT_MATMUL_PRECISION) wins; the dtype "tf32" sets one.
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
    """`function` with exact float32 products. Products of bfloat16, which sum in float32 anyway, do not change."""

    @wraps(function)
    def run(*args: Args.args, **kwargs: Args.kwargs) -> Result:
        configured = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
        with jax.default_matmul_precision(configured or "highest"):
            return function(*args, **kwargs)

    return run


def compute_dtype(name: DTypeLike | None) -> np.dtype:
    """The dtype of a network by name; None: bfloat16 on accelerators, float32 on the CPU.

    "tf32" is float32 with the accelerator's fast products, for the whole process: between float32 and bfloat16 in error and time.
    """
    if name == "tf32":
        jax.config.update("jax_default_matmul_precision", "tensorfloat32")
        return jnp.dtype(jnp.float32)
    return jnp.dtype(name or (jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16))
