"""The painter from a cache: what encoder and autoencoder make of every row was computed before (`dim cache`), and they are not loaded."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray
from PIL import Image

from dim_jax.config import Config
from dim_jax.data.batches import CachedBatch, PaintBatch
from dim_jax.data.example import Example
from dim_jax.data.processor import Processor
from dim_jax.data.readers import CachedReader
from dim_jax.errors import InputError
from dim_jax.models.dim import Features, TrainableModel, loss
from dim_jax.models.flops import StepFlops
from dim_jax.models.precision import compute_dtype
from dim_jax.training.objectives.painter import PainterObjective
from dim_jax.weights.model_config import ModelConfig

CACHED = ("encoder", "autoencoder")  # the parts that a cache stands for


def check_cacheable(config: Config) -> None:
    """Refuse what no cache can hold.

    Raises:
        InputError: it is not the painter that is trained, a part that a cache stands for learns, or pictures are changed at random.
    """
    if config.objective != "painter" or (learn := [part for part in CACHED if part not in config.frozen]):
        said = f'config.objective "{config.objective}"' if config.objective != "painter" else f"config.trainable has {', '.join(learn)}"
        raise InputError(f"{said}: a cache is of the painter's {' and '.join(CACHED)}, which must be frozen.")
    for key in ("shift", "mirrored", "recoloured"):
        if value := config.data[key]:
            raise InputError(
                f"config.data.{key} is {value!r}: a cache holds each picture once, so it cannot change pictures at random. Set "
                f"data.{key} to {type(value)()!r}."
            )


@dataclass(frozen=True)
class CachedPainterObjective:
    """`PainterObjective` of which a step computes connector and SANA alone."""

    painter: PainterObjective

    PARTS = PainterObjective.PARTS

    @property
    def config(self) -> Config:
        return self.painter.config

    @property
    def sizes(self) -> ModelConfig:
        return self.painter.sizes

    @property
    def processor(self) -> Processor:
        return self.painter.processor

    @property
    def reader(self) -> CachedReader:
        return CachedReader(self.painter.reader)

    @property
    def model(self) -> nnx.Module:
        return self.painter.model

    @cached_property
    def trainable_model(self) -> nnx.Module:
        config, dtype = self.painter.dim_config, compute_dtype(self.config.model.dtype)
        return nnx.eval_shape(lambda: TrainableModel(config, dtype=dtype, rngs=nnx.Rngs(0)))

    def loss(self, learner: Any, batch: CachedBatch, key: PRNGKeyArray) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        return loss(learner, features(batch), key, **self.painter.loss_options).mean(), {}

    def step_flops(self, batch: CachedBatch) -> StepFlops:
        b, h, w, _ = batch.target.shape
        return self.painter.trainable_flops(b, h * w, batch.hidden.shape[1])

    def abstract_batch(self, batch: PaintBatch) -> CachedBatch:
        """Shapes and dtypes of what stands for a batch, its hidden states stored as they are computed."""
        found = jax.eval_shape(self.painter.features, self.model, batch)
        return CachedBatch(found.hidden, None, found.mask, found.target, found.source)

    def show(self, model: Any, examples: Sequence[Example]) -> Image.Image:
        return self.painter.show(model, examples)

    def finished(self, model: Any, examples: Iterable[Example]) -> ModelConfig:
        return self.painter.finished(model, examples)


def features(batch: CachedBatch) -> Features:
    """The hidden states and latents that a batch of a cache stores."""
    hidden: Any = batch.hidden
    if batch.scale is not None:
        hidden = hidden.astype(jnp.float32) * batch.scale[:, None]
    return Features(hidden, batch.mask, batch.target, batch.source)
