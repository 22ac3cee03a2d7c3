"""The mean of two models' weights, a tensor at a time."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from dim_jax.errors import InputError
from dim_jax.weights.published import Weights


def mean(weights: Weights, other: Weights) -> Weights:
    """Every tensor the mean of both, in the dtype that it has in `weights`, where all else comes from.

    Of a model before and after it learned something new, it often does the new and forgets little (Wortsman et al., "Robust fine-tuning of
    zero-shot models", arXiv 2109.01903).

    Raises:
        InputError: they have other tensors, or the same in another order, as other formats have.
    """
    ours, theirs = ({path: info.shape for path, info in one.stored.items()} for one in (weights, other))
    if wrong := [path for path in sorted(ours | theirs) if ours.get(path) != theirs.get(path)]:
        raise InputError(f"{other.where}: {wrong[0]} is {theirs.get(wrong[0])}, in {weights.where} {ours.get(wrong[0])}. Give one like it.")

    def stream(scratch: Path | None = None) -> Iterator[tuple[str, np.ndarray]]:
        for (path, one), (name, another) in zip(weights.stream(scratch), other.stream(scratch), strict=True):
            if path != name:
                raise InputError(f"{other.where}: its tensors come in another order. Convert it to the format of {weights.where} first.")
            yield path, ((one.astype(np.float32) + another.astype(np.float32)) / 2).astype(one.dtype)

    return replace(weights, stream=stream)
