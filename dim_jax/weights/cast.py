"""Weights in another dtype, cast a tensor at a time on their way from one format to another."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from dim_jax.errors import InputError
from dim_jax.weights.arrays import copy_into, empty, is_finite
from dim_jax.weights.files import DTYPES
from dim_jax.weights.published import Weights
from dim_jax.weights.table import tensor_mappings, to_hf

CASTS = {"float32": "F32", "bfloat16": "BF16"}


def cast(weights: Weights, dtype: str) -> Weights:
    """The same weights with all tensors in `dtype`, a key of `CASTS`, rounded to nearest, ties to even.

    The manifest and the encoder's config speak of the new dtype as well: what is written from them is what the tensors are.
    The stream raises InputError at its end if tensors became infinite, naming all.

    Raises:
        InputError: `dtype` is another one.
    """
    if dtype not in CASTS:
        raise InputError(f"--dtype {dtype}: choose one of {', '.join(CASTS)}.")
    to = CASTS[dtype]
    extras = {name: _as(tensor, DTYPES[to]) for name, tensor in weights.extras.items()}
    published = {ours: theirs for theirs, ours in weights.manifest.kept.items()} if weights.manifest else {}

    def stream(scratch: Path | None = None) -> Iterator[tuple[str, np.ndarray]]:
        infinite = [
            published.get(name, name) for name, tensor in extras.items() if not is_finite(tensor) and is_finite(weights.extras[name])
        ]
        for path, tensor in weights.stream(scratch):
            result = _as(tensor, DTYPES[to], scratch)
            if not is_finite(result) and is_finite(tensor):
                infinite += _infinite(weights, path, result)
            del tensor  # or it would live on while the result is written
            yield path, result
            del result
        if infinite:
            raise InputError(
                f"{weights.where}: too large for {dtype}, they become infinite: {', '.join(infinite)}. Keep the dtype that they have."
            )

    encoder = weights.sizes.encoder
    return replace(
        weights,
        sizes=replace(weights.sizes, encoder=encoder and replace(encoder, dtype=dtype)),
        stored={path: info._replace(dtype=to) for path, info in weights.stored.items()},
        stream=stream,
        extras=extras,
        manifest=weights.manifest and weights.manifest.cast(to),
    )


def _as(tensor: np.ndarray, dtype: np.dtype, scratch: Path | None = None) -> np.ndarray:
    """The tensor itself if it has this dtype, else a copy; what is too large becomes infinite."""
    if tensor.dtype == dtype:
        return tensor
    result = empty(tensor.shape, dtype, scratch)
    with np.errstate(over="ignore"):
        copy_into(result, tensor)
    return result


def _infinite(weights: Weights, path: str, tensor: np.ndarray) -> list[str]:
    """The published tensors in one of ours that are not finite, by name; our path where none is known."""
    form = weights.manifest and weights.manifest.published
    if form is None or not form.matching([path]):
        return [path]
    parts = to_hf(tensor_mappings(form.rows, {path: tensor.shape}), {path: tensor}.__getitem__)
    return [name for name, part in parts if not is_finite(part)]
