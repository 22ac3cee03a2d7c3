"""The programs of painting: functions of a model and arrays, which `Sampler` compiles and calls with the leaves of its model.

To take a model of full size apart into its 411 arrays takes some 2 ms, which every call of a program would spend anew.
"""

from collections.abc import Callable, Hashable
from functools import cache, wraps
from typing import Any

import jax
import jax.numpy as jnp
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
    condition, source, branches = _in_rows(len(seeds), condition, source, **options)
    return dim.paint(condition, seeds, size, source, **branches)


def advance(dim: Dim, condition: Condition, state: State, step: Array, *, source: Array | None, **options: Any) -> State:
    condition, source, branches = _in_rows(len(state.latents), condition, source, **options)
    return dim.advance(state, condition, source, step, 1, **branches)


def prompt_alignment(
    dim: Dim, condition: Condition, latents: Array, *, source: Array | None, **options: Condition | None
) -> Float[Array, " b"]:
    condition, source, branches = _in_rows(len(latents), condition, source, **options)
    return dim.prompt_alignment(latents, condition, branches["unconditional"], source)


def _in_rows(
    rows: int, condition: Condition, source: Array | None, *, null: Condition | None, unconditional: Condition | None, **options: Any
) -> tuple[Condition, Array | None, dict[str, Any]]:
    """The condition, the source and the options of `Dim.advance` for so many pictures. A condition or source of one row is that of all of
    them; `null` is a row that stands for all of `unconditional`, masked as the condition is."""
    condition = _repeat(condition, rows)
    unconditional = null.broadcast(condition.mask) if null is not None else unconditional and _repeat(unconditional, rows)
    if source is not None:
        source = jnp.broadcast_to(source, (rows, *source.shape[1:]))
    return condition, source, options | {"unconditional": unconditional}


def _repeat(condition: Condition, rows: int) -> Condition:
    if len(condition.mask) == rows:
        return condition
    return condition.broadcast(jnp.broadcast_to(condition.mask, (rows, condition.mask.shape[1])))
