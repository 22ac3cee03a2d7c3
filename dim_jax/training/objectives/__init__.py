"""What a run trains: the autoencoder, the encoder as a writer, or the painter.

An objective is a frozen dataclass that `train.py` asks for eight things:

    PARTS                        the parts of Draw-In-Mind that it needs
    reader                       how examples become batches
    model                        the abstract module, its parameters named as in checkpoints ("sana.blocks. ...")
    learner                      the abstract module of a step: the model, or those of its parts that a cache leaves to compute with
    loss(learner, batch, key)    the scalar to minimise and what else to log
    step_flops(batch)            what a step on a batch computes; only shapes are read
    show(model, examples)        what it makes of held-out examples: a picture, or a text in Markdown; all processes must ask
    finished(model, examples)    the sizes of the trained checkpoint
"""

from typing import Any

from dim_jax.config import Config
from dim_jax.data.chat import ChatTokenizer
from dim_jax.errors import InputError
from dim_jax.models.sana import KEPT
from dim_jax.paths import AnyPath
from dim_jax.training.model_init import ModelInit
from dim_jax.training.objectives.autoencoder import AutoencoderObjective
from dim_jax.training.objectives.cached import CachedPainterObjective, check_cacheable
from dim_jax.training.objectives.encoder import EncoderObjective
from dim_jax.training.objectives.painter import PainterObjective

Objective = AutoencoderObjective | EncoderObjective | PainterObjective | CachedPainterObjective
OBJECTIVES: dict[str, type[AutoencoderObjective] | type[EncoderObjective] | type[PainterObjective]] = {
    "autoencoder": AutoencoderObjective,
    "encoder": EncoderObjective,
    "painter": PainterObjective,
}


def objective_kind(config: Config) -> type[AutoencoderObjective] | type[EncoderObjective] | type[PainterObjective]:
    """What `config.objective` names.

    Raises:
        InputError: there is no such objective or `config.model.remat`; `config.trainable` and `config.frozen` do not name each part once;
            or it cannot be trained from the cache that `config.data.cache` names.
    """
    if config.objective not in OBJECTIVES:
        raise InputError(f'config.objective is "{config.objective}", but objectives are {", ".join(OBJECTIVES)}.')
    kind = OBJECTIVES[config.objective]
    if sorted([*config.trainable, *config.frozen]) != sorted(kind.PARTS):
        said = f"config.trainable {tuple(config.trainable)} and config.frozen {tuple(config.frozen)}"
        raise InputError(f"{said}: name each of {', '.join(kind.PARTS)} once.")
    if config.model.remat not in KEPT:
        raise InputError(f"config.model.remat is {config.model.remat!r}, but must be one of {', '.join(KEPT)}.")
    if config.data.cache:
        check_cacheable(config)
    return kind


def open_objective(config: Config, start: ModelInit, tokenizer: AnyPath | None) -> Objective:
    """The objective over the parts of `start`; `tokenizer` is the folder of the encoder's, where there is an encoder.

    Raises:
        InputError: as `objective_kind` and `ModelInit.with_tokenizer`; or the tokenizer cannot be loaded.
    """
    processor: Any = None
    if tokenizer is not None:
        chat = ChatTokenizer.from_pretrained(tokenizer)
        start = start.with_tokenizer(chat)
        processor = start.processor(chat, config)
    objective = objective_kind(config)(config, start.sizes, processor)
    return CachedPainterObjective(objective) if config.data.cache and isinstance(objective, PainterObjective) else objective
