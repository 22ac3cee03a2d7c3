"""What a run trains: the painter, the autoencoder, or the encoder as a writer; chosen once from its config.

    features = objective.features(model, batch)
    loss, metrics = objective.loss(model, features, key)

This is how a training step (`train.make_train_step`) uses one. The losses themselves are in training/losses.py.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, PRNGKeyArray

from dim_jax.config import Config
from dim_jax.data.batches import AnswerBatch, CachedBatch, PaintBatch, PictureBatch
from dim_jax.data.readers import AnswerReader, CachedReader, PaintReader, PictureReader
from dim_jax.models.dim import DimConfig
from dim_jax.models.float8 import with_float8
from dim_jax.models.lora import Module, with_lora
from dim_jax.models.precision import compute_dtype
from dim_jax.models.quantized import Quantize, with_quantized
from dim_jax.processing.buckets import aspect_buckets
from dim_jax.processing.chat import ChatTokenizer
from dim_jax.processing.pictures import normalize_pixels
from dim_jax.processing.processor import Processor
from dim_jax.storage.paths import AnyPath
from dim_jax.training.distillation import distillation_loss
from dim_jax.training.lora import adapted_layers
from dim_jax.training.losses import Features, Loss, autoencoder_loss, cached_features, encode_batch, encoder_loss, painter_loss
from dim_jax.training.model_init import ModelInit
from dim_jax.training.repa import Alignment
from dim_jax.training.reward import PaintedBatch, paint_groups, reward_loss
from dim_jax.weights.model_config import REPA, TEACHER, ModelConfig

COMPONENTS = {"autoencoder": ("autoencoder",), "encoder": ("encoder",), "painter": ("encoder", "connector", "sana", "autoencoder")}
CACHED = ("encoder", "autoencoder")  # the components whose results a cache holds


def components_of(config: Config) -> tuple[str, ...]:
    """The components of the objective that a config names, with the teacher of a distillation or of rewards, or the projection of REPA."""
    has_teacher = config.distill.method != "none" or (config.reward.method != "none" and config.reward.anchor)
    extra = ((TEACHER,) if has_teacher else ()) + ((REPA,) if config.repa.weight else ())
    return COMPONENTS[config.objective] + extra


@dataclass(frozen=True)
class Objective:
    """How a run makes batches, features and its loss.

    Attributes:
        config: of the run.
        model_config: the sizes of all components.
        processor: what reads prompts and pictures for the encoder.
        reader: how examples become batches.
        components: those that a step computes with.
        features: (model, batch) -> what the loss reads.
        loss: (model, features, key) -> the scalar to minimise, and what else to log.
        paint: (model, batch, key) -> a `PaintedBatch` that wants rewards, which is what a step then reads, and its pictures; None: a step
            reads the batch itself.
    """

    config: Config
    model_config: ModelConfig
    processor: Any  # a Processor; None without an encoder
    reader: Any
    components: tuple[str, ...]
    features: Callable[[Any, Any], Any]
    loss: Callable[[Any, Any, Any], Loss]
    paint: Callable[[Any, Any, Any], tuple[PaintedBatch, Array]] | None = None

    @cached_property
    def model(self) -> nnx.Module:
        """The components of a step as abstract modules, with the adapters that learn in a LoRA."""
        return self.adapted(abstract_model(self.model_config, self.components, compute_dtype(self.config.model.dtype)))

    def adapted(self, model: Module) -> Module:
        """An abstract model of all components of a step, or more, with the quantized kernels, adapters and float8 products that the config
        asks for."""
        model = with_quantized(model, quantization(self.config))
        rank: int = self.config.lora.rank
        layers = adapted_layers(self.config, self.model_config.shapes())
        if layers:
            model = with_lora(model, dict.fromkeys(layers, rank), self.config.lora.alpha / rank)
        return with_float8(model) if self.config.model.float8 else model


def quantization(config: Config) -> Quantize | None:
    """The format of the frozen kernels of large layers; None: as they are."""
    return None if config.model.quantize == "none" else config.model.quantize


def abstract_model(model_config: ModelConfig, components: Collection[str], dtype: DTypeLike) -> nnx.Module:
    """Some components as abstract modules, with parameters named as in checkpoints ("sana.blocks. ..."), computing in `dtype`."""
    make = model_config.modules(dtype=dtype)
    return nnx.eval_shape(lambda: nnx.Dict({name: make[name](nnx.Rngs(0)) for name in components}))


def _painter(config: Config, model_config: ModelConfig, processor: Any) -> Objective:
    reader, aligned = paint_reader(config, model_config, processor), config.repa.weight > 0

    def online_features(model: Any, batch: PaintBatch) -> Features:
        return encode_batch(model.encoder, model.autoencoder, batch, align=aligned)

    def stored_features(model: Any, batch: CachedBatch) -> Features:
        return cached_features(batch)

    def loss(model: Any, features: Features, key: PRNGKeyArray) -> Loss:
        aligning = Alignment(model.repa, config.repa.block, config.repa.weight) if aligned else None
        return painter_loss(model.connector, model.sana, features, key, **config.flow, aligning=aligning, remat=config.model.remat)

    if config.reward.method != "none":
        return _rewarded(config, model_config, processor, reader, online_features)
    minimized = loss if config.distill.method == "none" else distillation_loss(config)
    if config.data.cache:
        components = tuple(name for name in components_of(config) if name not in CACHED)
        return Objective(config, model_config, processor, CachedReader(reader), components, stored_features, minimized)
    return Objective(config, model_config, processor, reader, components_of(config), online_features, minimized)


def _rewarded(config: Config, model_config: ModelConfig, processor: Any, reader: Any, encode: Callable[[Any, Any], Features]) -> Objective:
    reward, sample = config.reward, config.sample
    times = {"shift": config.flow.shift, "draw": config.flow.draw, "std": config.flow.std}

    def paint(model: Any, batch: PaintBatch, key: PRNGKeyArray) -> tuple[PaintedBatch, Array]:
        return paint_groups(
            model.connector, model.sana, model.autoencoder.decode, model.get(TEACHER), encode(model, batch), key,
            pictures=reward.pictures, times=reward.times, num_steps=sample.num_steps, flow_shift=sample.flow_shift, **times,
        )  # fmt: skip

    def painted(model: Any, batch: PaintedBatch) -> PaintedBatch:
        return batch

    def loss(model: Any, batch: PaintedBatch, key: PRNGKeyArray) -> Loss:
        weights = {"beta": reward.beta, "clip": reward.clip, "anchor": reward.anchor}
        return reward_loss(model.connector, model.sana, batch, **weights, remat=config.model.remat)

    return Objective(config, model_config, processor, reader, components_of(config), painted, loss, paint)


def _autoencoder(config: Config, model_config: ModelConfig, processor: Any) -> Objective:
    assert model_config.autoencoder is not None
    sizes = aspect_buckets(config.data.resolution, model_config.autoencoder.factor, config.data.max_aspect_ratio)

    def features(model: Any, batch: PictureBatch) -> Array:
        return normalize_pixels(batch.pixels)

    def loss(model: Any, pixels: Array, key: PRNGKeyArray) -> Loss:
        return autoencoder_loss(model.autoencoder, pixels, key, **config.autoencoder)

    return Objective(config, model_config, processor, PictureReader(tuple(sizes)), COMPONENTS["autoencoder"], features, loss)


def _encoder(config: Config, model_config: ModelConfig, processor: Any) -> Objective:
    def features(model: Any, batch: AnswerBatch) -> AnswerBatch:
        return batch

    def loss(model: Any, batch: AnswerBatch, key: PRNGKeyArray) -> Loss:
        return encoder_loss(model.encoder, batch)

    reader = AnswerReader(processor, tuple(config.data.lengths))
    return Objective(config, model_config, processor, reader, COMPONENTS["encoder"], features, loss)


def make_objective(config: Config, model_config: ModelConfig, processor: Processor | None) -> Objective:
    """The objective that `config.objective` names, over components of these sizes; an encoder needs a processor."""
    make = {"painter": _painter, "autoencoder": _autoencoder, "encoder": _encoder}[config.objective]
    return make(config, model_config, processor)


def open_objective(config: Config, model_init: ModelInit, tokenizer: AnyPath | None) -> Objective:
    """The objective over the components of `model_init`; `tokenizer` is the folder of the encoder's, where there is an encoder.

    Raises:
        InputError: as `ModelInit.with_tokenizer`; SANA and the autoencoder have other latents; or the tokenizer cannot be loaded.
    """
    processor = None
    if tokenizer is not None:
        chat = ChatTokenizer.from_pretrained(tokenizer)
        model_init = model_init.with_tokenizer(chat)
        processor = model_init.processor(chat, config)
    return make_objective(config, model_init.model_config, processor)


def paint_reader(config: Config, model_config: ModelConfig, processor: Processor) -> PaintReader:
    """What reads examples for the painter."""
    data, factor = config.data, dim_config(model_config).autoencoder.factor
    sizes = aspect_buckets(data.resolution, factor, data.max_aspect_ratio)
    return PaintReader(processor, tuple(data.lengths), tuple(sizes), data.text)


def dim_config(model_config: ModelConfig) -> DimConfig:
    """The sizes of a painter.

    Raises:
        InputError: SANA and the autoencoder have other latents.
    """
    encoder, sana, autoencoder = model_config.encoder, model_config.sana, model_config.autoencoder
    assert encoder is not None
    assert sana is not None
    assert autoencoder is not None
    return DimConfig(encoder, sana, autoencoder)
