"""Exports the model of a training run: the checkpoint folder or the LoRA at its end, and of any saved state."""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from dim_jax import checkpoint, processes
from dim_jax.config import Config, restore_config
from dim_jax.data.example import Example
from dim_jax.data.pipeline import MixtureComponent, evenly_spaced, evenly_spaced_examples
from dim_jax.errors import InputError, check
from dim_jax.processing.tokenizer import train_tokenizer
from dim_jax.sharding import MESH_AXES, Sharding
from dim_jax.storage.folders import write_json
from dim_jax.storage.locks import lock_output
from dim_jax.storage.paths import AnyPath, as_path, is_remote
from dim_jax.training.config_guard import check_config
from dim_jax.training.held_out import with_scaling_factor
from dim_jax.training.model_init import ModelInit, open_data
from dim_jax.training.objectives import Objective, open_objective
from dim_jax.training.resume import read_notes, read_state
from dim_jax.training.state import abstract_exported, abstract_state
from dim_jax.training.student import painter_params, painter_sizes, sample_settings
from dim_jax.weights.convert import convert
from dim_jax.weights.lora import from_factors
from dim_jax.weights.lora_files import write_lora
from dim_jax.weights.published import tokenizer_in

SCALING_EXAMPLES = 256  # held-out examples that measure an autoencoder's scaling factor
TOKENIZER_ROWS = 20_000  # examples of each source whose texts make a tokenizer
StateWeights = Literal["ema", "raw"]


def write_model(
    folder: AnyPath, config: Config, objective: Objective, params: Mapping[str, Any], examples: Iterable[Example], tokenizer: AnyPath | None
) -> None:
    """Write all parameters of a run as a checkpoint folder, with the settings.json of a painter or the scaling factor of an autoencoder; a
    student as a painter like any other, without its teacher.

    All processes must call this, with the same arrays: each writes its shards.

    Args:
        folder: to make or replace.
        config: of the run.
        objective: of the run.
        params: path -> array.
        examples: held-out examples that measure the autoencoder's scaling factor.
        tokenizer: the tokenizer's folder, if there is one.
    """
    model_config, params = painter_sizes(objective.model_config), painter_params(objective.model_config, params)
    if config.objective == "autoencoder":
        model_config = with_scaling_factor(objective, params, examples)
    settings = None
    if config.objective == "painter":
        settings = folder.with_name(checkpoint.SETTINGS)
        if processes.is_first():
            write_json(settings, config.sample.to_dict() | sample_settings(config))
    files = tokenizer_in(tokenizer) if tokenizer else ()
    checkpoint.save(folder, params, model_config.to_json(), tokenizer=files, settings=settings, overwrite=True)


def write_adapters(folder: AnyPath, config: Config, params: Mapping[str, Any]) -> None:
    """Write the factors of a run's adapters (path -> array) as a LoRA in the files of PEFT. All processes must call this."""
    factors = {path: np.asarray(processes.to_host(factor)) for path, factor in params.items()}
    if processes.is_first():
        write_lora(folder, from_factors(str(folder), factors, config.lora.alpha / config.lora.rank), "dim", overwrite=True)
    processes.barrier("the LoRA")


def export_state(state: AnyPath, folder: AnyPath, weights: StateWeights) -> None:
    """Write the model of a training state as a checkpoint folder, or its LoRA. Frozen components come from the run's own sources.

    Args:
        state: WORKDIR/checkpoints/STEP.
        folder: to make.
        which: the averaged parameters ("ema"), or those of the step itself ("raw").

    Raises:
        InputError: the state is damaged, or a checkpoint or the data of its config is missing.
    """
    config = restore_config(read_notes(state)["config"])
    for axis in MESH_AXES:
        config.sharding[axis] = 1
    model_init = ModelInit.open(config, check_config(config))
    tokenizer = run_tokenizer(config, model_init, state.parent.parent)
    check(tokenizer is None or tokenizer.exists(), f"{tokenizer}: the tokenizer of this run is missing. Restore the folder.")
    objective = open_objective(config, model_init, tokenizer)
    # The host's memory holds the state, which may have been sharded over many devices.
    sharding = Sharding.open(config, model_init.model_config, jax.devices("cpu")[:1])
    restored = read_state(state, abstract_state(config, objective.model_config, sharding))
    learned = restored.ema if weights == "ema" else restored.params
    if config.lora.rank:
        write_adapters(folder, config, learned)
        return
    frozen = model_init.init_params(config.seed, abstract_exported(objective, sharding))
    write_model(folder, config, objective, learned | frozen, _held_out(config), tokenizer)


def _held_out(config: Config) -> Iterator[Example]:
    """Opens the data when the first example is read."""
    yield from evenly_spaced_examples(open_data(config, "test"), SCALING_EXAMPLES, [] if config.data.bad_samples else None)


def convert_state(state: AnyPath, dst: AnyPath, to: str, weights: StateWeights, **options: Any) -> None:
    """`weights.convert.convert` of the model of a training state (`export_state`), with the options of that. Errors as in both."""
    with lock_output(dst), tempfile.TemporaryDirectory(dir=None if is_remote(dst) else dst.parent, prefix=f".{dst.name}-") as scratch:
        export_state(state, Path(scratch) / "model", weights)
        convert(Path(scratch) / "model", dst, to, **options)


def run_tokenizer(config: Config, model_init: ModelInit, workdir: AnyPath) -> AnyPath | None:
    """The folder of a run's tokenizer: from the config, the encoder's own, or one to train; None: the run has no encoder."""
    if model_init.model_config.encoder is None:
        return None
    if config.data.tokenizer:
        folder = as_path(config.data.tokenizer)
        tokenizer_in(folder)  # its files go into the checkpoint at the end: refuse now what could not be copied then
        return folder
    return model_init.tokenizer or workdir / "tokenizer"


def make_tokenizer(
    config: Config, model_init: ModelInit, mixture: Sequence[MixtureComponent], workdir: AnyPath, *, has_state: bool
) -> AnyPath | None:
    """`run_tokenizer`; the first process trains one for the run, in `workdir`/tokenizer, if it is missing. Without a state (`has_state`) an
    existing one is of a failed start, perhaps with other texts, and is replaced."""
    tokenizer = run_tokenizer(config, model_init, workdir)
    if processes.is_first() and tokenizer is not None and tokenizer == workdir / "tokenizer" and not (has_state and tokenizer.exists()):
        assert model_init.model_config.encoder is not None
        train_tokenizer(_texts(mixture), model_init.model_config.encoder.text.vocab_size, tokenizer)
    return tokenizer


def _texts(mixture: Sequence[MixtureComponent]) -> Iterator[str]:
    """The texts of each source."""
    for member in mixture:
        for row in evenly_spaced(len(member.source), TOKENIZER_ROWS):
            with suppress(InputError):  # a bad row is reported and counted when it is used
                row_texts = member.source.row_texts(row)
                yield from (*row_texts.texts, row_texts.blueprint or "")
