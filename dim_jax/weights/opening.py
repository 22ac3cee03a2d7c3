"""Opens a checkpoint in any format, published or ours."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from dim_jax import checkpoint
from dim_jax.errors import InputError, check, listed
from dim_jax.storage.folders import check_finished
from dim_jax.storage.paths import AnyPath, read_json
from dim_jax.weights.files import NAMES, open_safetensors
from dim_jax.weights.hub_files import locate_checkpoint
from dim_jax.weights.lazy import LazyTensors, merge
from dim_jax.weights.manifest import Manifest, check_finite
from dim_jax.weights.model_config import ModelConfig
from dim_jax.weights.published import Weights, mismatches, open_published


def open_weights(path: AnyPath | str) -> Weights:
    """Open a checkpoint in any known format: a file, a folder, or a model of the Hugging Face hub (ORG/NAME, ORG/NAME@REVISION).

    Raises:
        InputError: see `published.open_published`; or one of our folders is damaged, or a model of the hub cannot be fetched.
    """
    path = locate_checkpoint(path).path
    check_finished(path)
    if not checkpoint.is_checkpoint(path):
        return open_published(path)
    config = ModelConfig.from_json(read_json(path / checkpoint.CONFIG))
    stored = checkpoint.abstract(path)
    for name, info in stored.items():
        check(info.dtype in NAMES, f"{path}: {name} is {info.dtype}; weights are {', '.join(NAMES.values())}. Save it in one of these.")
    if problems := mismatches(stored, config.shapes()):
        raise InputError(
            f"{path}: {checkpoint.CONFIG} and the weights disagree: {listed(problems, '; ')}. Restore the config of these weights."
        )
    manifest_path, extras = path / checkpoint.MANIFEST, path / checkpoint.EXTRAS
    manifest = Manifest.from_json(read_json(manifest_path), manifest_path) if manifest_path.is_file() else None

    def read(names: Sequence[str], scratch: Path | None) -> Iterator[tuple[str, np.ndarray]]:
        return checkpoint.read(path, names)  # needs no scratch folder: nothing is assembled

    tensors = merge([("", LazyTensors(stored, read)), *([("", open_safetensors(extras))] if extras.is_file() else [])])
    return Weights(
        where=str(path),
        title="checkpoint folder",
        config=config,
        tensors=check_finite(
            tensors, manifest, lambda bad: f"{path}: not finite: {listed(bad)}. The checkpoint is damaged, or training diverged before it."
        ),
        manifest=manifest,
        tokenizer=checkpoint.tokenizer_files(path),
        settings=checkpoint.settings_file(path),
        counts=Counter(name.split(".")[0] for name in stored),
    )
