"""The programs of painting: functions of a model and arrays, which `Sampler` compiles and calls with the leaves of its model.

To take a model of full size apart into its 411 arrays takes some 2 ms, which every call of a program would spend anew.
"""

from collections.abc import Callable, Hashable
from functools import cache, wraps
from typing import Any

import jax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from dim_jax.diffusion.sampler import State
from dim_jax.models.dc_ae_tiling import Tiling
from dim_jax.models.dim import Dim
from dim_jax.models.sana import Condition
from dim_jax.processing.inputs import EncoderInputs


@cache
def compiled(
    function: Callable[..., Any],
    structure: Hashable,
    mesh: Mesh | None,
    compiler_options: tuple[tuple[str, Any], ...],
    **options: Any,
) -> Any:
    """`function` compiled for models of this structure (`jax.tree.structure`), each passed as the list of its leaves, with the mesh set
    where `layers.shard_batch` looks for it; once for all samplers, since those of equal models (LoRAs of one rank, the sheets of a run) run
    the same programs."""

    @wraps(function)
    def run(leaves: list[Array], *args: Any, **kwargs: Any) -> Any:
        dim = jax.tree.unflatten(structure, leaves)
        if mesh is None:
            return function(dim, *args, **kwargs)
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(dim, *args, **kwargs)

    return jax.jit(run, compiler_options=dict(compiler_options) or None, **options)


def condition(dim: Dim, inputs: EncoderInputs, length: int) -> Condition:
    return dim.sana.encode_condition(*dim.condition(inputs, length))


def encode(dim: Dim, pixels: Float[Array, "b h w 3"], tiling: Tiling) -> Float[Array, "b rows columns c"]:
    return dim.autoencoder.encode(pixels, tiling)


def decode(dim: Dim, latents: Float[Array, "b rows columns c"], tiling: Tiling) -> Float[Array, "b h w 3"]:
    return dim.autoencoder.decode(latents, tiling)


def paint(dim: Dim, condition: Condition, seeds: Array, *, size: tuple[int, int], source: Array | None, **options: Any) -> Array:
    return dim.paint(condition, seeds, size, source, **_branches(condition, **options))


def advance(dim: Dim, condition: Condition, state: State, step: Array, *, source: Array | None, **options: Any) -> State:
    return dim.advance(state, condition, source, step, 1, **_branches(condition, **options))


def _branches(condition: Condition, *, null: Condition | None, unconditional: Condition | None, **options: Any) -> dict[str, Any]:
    """The options of `Dim.advance`; `null` is a row that stands for all of `unconditional`."""
    return options | {"unconditional": null.broadcast(condition.mask) if null is not None else unconditional}


def prompt_alignment(
    dim: Dim, condition: Condition, latents: Array, *, source: Array | None, **branches: Condition | None
) -> Float[Array, " b"]:
    return dim.prompt_alignment(latents, condition, _branches(condition, **branches)["unconditional"], source)
