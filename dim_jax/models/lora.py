"""Low-rank adapters (LoRA, Hu et al., arXiv 2106.09685): a linear layer and a narrow branch beside it, y = x W + bias + scale (x A) B.

The branch is computed by itself. To add scale A B to W in each step would need a second kernel and the gradient of it at full size, and
the product that makes that gradient (docs/architecture.md has the numbers).
"""

from collections.abc import Mapping
from typing import TypeVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

Module = TypeVar("Module", bound=nnx.Module)

FACTORS = ("lora_a", "lora_b")  # last names of the parameters


class LoRALinear(nnx.Linear):
    """A linear layer with a low-rank branch; it takes kernel and bias over from `base`, with the layers that are stacked in them."""

    def __init__(self, base: nnx.Linear, rank: int, scale: float):
        use_bias = base.bias is not None
        super().__init__(base.in_features, base.out_features, use_bias=use_bias, dtype=base.dtype, rngs=nnx.Rngs(0))
        self.kernel, self.bias, self.promote_dtype = base.kernel, base.bias, base.promote_dtype  # of a quantized kernel, its own
        *stack, d, f = base.kernel.shape
        self.lora_a = nnx.Param(jnp.zeros((*stack, d, rank)))
        self.lora_b = nnx.Param(jnp.zeros((*stack, rank, f)))
        self.scale = scale

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b f"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().__call__(x) + self.branch(x)

    def branch(self, x: Float[Array, "*b d"]) -> Float[Array, "*b f"]:
        """What is added to the layer's result."""
        x, a, b = (array.astype(self.dtype) for array in (x, self.lora_a[...], self.lora_b[...]))
        return x @ a @ b * self.scale


def with_lora(model: Module, ranks: Mapping[str, int], scale: float = 1.0) -> Module:
    """The same abstract model with a branch of rank `ranks[layer]` at each of these linear layers ("sana.blocks.attn.qkv").

    Every parameter of before keeps its path; "LAYER.lora_a" (..., d, rank) and "LAYER.lora_b" (..., rank, f) are new.
    """

    def attach(model: Module) -> Module:
        modules = dict(nnx.iter_modules(model))
        for path, layer in modules.items():
            if rank := ranks.get(".".join(map(str, path)), 0):
                assert isinstance(layer, nnx.Linear), path
                setattr(modules[path[:-1]], str(path[-1]), LoRALinear(layer, rank, scale))
        return model

    return nnx.eval_shape(attach, model)


def is_factor(path: str) -> bool:
    """Whether a parameter is of an adapter."""
    return path.rpartition(".")[2] in FACTORS
