"""Weights in another dtype, the mean of two models, a model with LoRAs merged into it: a tensor at a time, from one format to another."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dim_jax.checkpoint import TensorInfo
from dim_jax.errors import InputError, check, listed
from dim_jax.models.lora import FACTORS
from dim_jax.weights.arrays import copy_into, empty
from dim_jax.weights.lazy import LazyTensors
from dim_jax.weights.lora import Lora, sum_loras
from dim_jax.weights.manifest import check_finite
from dim_jax.weights.published import Weights

CASTS = ("float32", "bfloat16")


def cast(weights: Weights, dtype: str) -> Weights:
    """The same weights with all tensors in `dtype`, one of `CASTS`, rounded to nearest, ties to even.

    The manifest and the encoder's config get the new dtype too. Reading all tensors ends with an InputError that names those that became
    infinite.

    Raises:
        InputError: `dtype` is not one of `CASTS`.
    """
    check(dtype in CASTS, f"--dtype {dtype}: choose one of {', '.join(CASTS)}.")
    to = np.dtype(dtype)

    def read(names: Sequence[str], scratch: Path | None) -> Iterator[tuple[str, np.ndarray]]:
        for name, tensor in weights.tensors.read(names, scratch):
            if tensor.dtype != to:
                result = empty(tensor.shape, to, scratch)
                with np.errstate(over="ignore"):
                    copy_into(result, tensor)
                tensor = result
                del result
            yield name, tensor
            del tensor  # free it before the next one is read

    encoder = weights.config.encoder
    return replace(
        weights,
        config=replace(weights.config, encoder=encoder and replace(encoder, dtype=dtype)),
        tensors=check_finite(
            LazyTensors({name: TensorInfo(info.shape, to) for name, info in weights.tensors.items()}, read),
            weights.manifest,
            lambda bad: f"{weights.where}: too large for {dtype}, they become infinite: {listed(bad)}. Keep their dtype.",
        ),
        manifest=weights.manifest and weights.manifest.cast(to),
    )


def mean(weights: Weights, other: Weights) -> Weights:
    """The mean of two models, in the dtypes of `weights`, which everything else is taken from.

    The mean of a model before and after fine-tuning often does the new task and forgets little (Wortsman et al., "Robust fine-tuning of
    zero-shot models", arXiv 2109.01903).

    Raises:
        InputError: their parameters differ.
    """
    shapes, others = ({path: model.tensors[path].shape for path in model.parameters} for model in (weights, other))
    if differ := [path for path in sorted(shapes | others) if shapes.get(path) != others.get(path)]:
        raise InputError(
            f"{other.where}: {differ[0]} is {others.get(differ[0])}, in {weights.where} {shapes.get(differ[0])}. Give a checkpoint "
            "with the same parameters."
        )

    def read(names: Sequence[str], scratch: Path | None) -> Iterator[tuple[str, np.ndarray]]:
        second = other.tensors.read([name for name in names if name in others], scratch)
        for name, tensor in weights.tensors.read(names, scratch):
            if name in others:
                tensor = ((tensor.astype(np.float32) + next(second)[1].astype(np.float32)) / 2).astype(tensor.dtype)
            yield name, tensor
            del tensor  # free it before the next one is read
        next(second, None)  # to its end, where it may raise an error

    return replace(weights, tensors=LazyTensors(weights.tensors, read))


def merge_lora(weights: Weights, loras: Sequence[tuple[Lora, float]]) -> Weights:
    """Every kernel with what the LoRAs, each times its weight, add to it, computed in float32 and in the dtype that it has in `weights`.

    Raises:
        InputError: a LoRA is of a model with other layers.
    """
    factors = sum_loras(loras, {path: weights.tensors[path].shape for path in weights.parameters})

    def read(names: Sequence[str], scratch: Path | None) -> Iterator[tuple[str, np.ndarray]]:
        for name, tensor in weights.tensors.read(names, scratch):
            a, b = (factors.get(f"{name.removesuffix('.kernel')}.{factor}") for factor in FACTORS)
            if a is not None and b is not None:
                merged = empty(tensor.shape, tensor.dtype, scratch)
                for block in np.ndindex(tensor.shape[:-2]):
                    merged[block] = tensor[block].astype(np.float32) + a[block] @ b[block]
                tensor = merged
                del merged
            yield name, tensor
            del tensor  # or it would live on while the next one is read

    return replace(weights, tensors=LazyTensors(weights.tensors, read))
