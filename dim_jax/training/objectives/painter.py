"""The painter: connector and SANA learn the flow's velocity; encoder and autoencoder are frozen."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray
from PIL import Image

from dim_jax.config import Config
from dim_jax.data.batches import PaintBatch
from dim_jax.data.buckets import aspect_buckets
from dim_jax.data.example import Example
from dim_jax.data.pictures import cover_crop, signed_pixels
from dim_jax.data.processor import Processor
from dim_jax.data.readers import PaintReader
from dim_jax.models import flops
from dim_jax.models.dim import Dim, DimConfig, Features, loss
from dim_jax.models.precision import compute_dtype
from dim_jax.sampling import Request, Sampler, Source
from dim_jax.settings import IN_FILE, Settings
from dim_jax.sheets import grid, labelled
from dim_jax.weights.model_config import ModelConfig


@dataclass(frozen=True)
class PainterObjective:
    """Flow matching (`models.dim.loss`), text to image or edits."""

    config: Config
    sizes: ModelConfig
    processor: Processor

    PARTS: ClassVar = ("encoder", "connector", "sana", "autoencoder")

    @property
    def reader(self) -> PaintReader:
        data = self.config.data
        sizes = tuple(aspect_buckets(data.resolution, self.dim_config.autoencoder.factor, data.max_aspect_ratio))
        return PaintReader(self.processor, tuple(data.lengths), sizes, data.text)

    @property
    def dim_config(self) -> DimConfig:
        encoder, sana, autoencoder = self.sizes.encoder, self.sizes.sana, self.sizes.autoencoder
        assert encoder is not None
        assert sana is not None
        assert autoencoder is not None
        return DimConfig(encoder, sana, autoencoder)

    @cached_property
    def model(self) -> nnx.Module:
        config = self.dim_config
        return nnx.eval_shape(lambda: Dim(config, dtype=compute_dtype(self.config.model.dtype), rngs=nnx.Rngs(0)))

    @property
    def trainable_model(self) -> nnx.Module:
        return self.model

    @property
    def loss_options(self) -> dict[str, Any]:
        """The options of `models.dim.loss`."""
        flow = self.config.flow
        return {
            "flow_shift": flow.shift, "draw": flow.draw, "condition_dropout": flow.condition_dropout,
            "source_dropout": flow.source_dropout, "remat": self.config.model.remat,
        }  # fmt: skip

    def features(self, model: Any, batch: PaintBatch) -> Features:
        """What the frozen parts make of a batch."""
        target, source = (None if samples is None else signed_pixels(samples) for samples in (batch.target, batch.source))
        return model.encode_batch(batch.inputs, target, source)

    def loss(self, learner: Any, batch: PaintBatch, key: PRNGKeyArray) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        return loss(learner, self.features(learner, batch), key, **self.loss_options).mean(), {}

    def step_flops(self, batch: PaintBatch) -> flops.StepFlops:
        encoder, autoencoder = self.dim_config.encoder, self.dim_config.autoencoder
        b, h, w, _ = batch.target.shape
        pictures = b if batch.source is None else 2 * b
        frozen = {"encoder": flops.encoder(encoder, batch.inputs), "autoencoder": flops.dc_ae_encoder(autoencoder, pictures, h, w)}
        rest = self.trainable_flops(b, h * w // autoencoder.factor**2, batch.inputs.input_ids.shape[1])
        parts = {part: work.step(learns=part in self.config.trainable) for part, work in frozen.items()}
        return flops.StepFlops({**parts, **rest.parts}, rest.recomputed)

    def trainable_flops(self, b: int, latents: int, tokens: int) -> flops.StepFlops:
        """What connector and SANA compute of a step, on `b` rows of so many latent tokens and tokens of the turn."""
        encoder, sana = self.dim_config.encoder, self.dim_config.sana
        t, learns = min(tokens, sana.condition_length), set(self.config.trainable)
        connector = flops.connector(encoder.text.hidden_size, sana.caption_channels, b, t)
        parts = {
            "connector": connector.step(learns="connector" in learns, passes="encoder" in learns),
            "sana": flops.sana(sana, b, latents, t).step(learns="sana" in learns, passes=bool(learns - {"sana"})),
        }
        return flops.StepFlops(parts, flops.sana_recomputed(sana, b, latents, t, self.config.model.remat))

    def show(self, model: Any, examples: Sequence[Example]) -> Image.Image:
        how = {key: value for key, value in self.config.sample.items() if key in IN_FILE}
        settings = Settings(**how, resolution=self.config.data.resolution)
        samples = [self.reader.choose(example, np.random.default_rng(0)) for example in examples]
        size = (self.config.data.resolution,) * 2
        sources = [None if sample.source_image is None else Source(sample.source_image) for sample in samples]
        requests = [Request(sample.prompt, seed, size, source) for seed, (sample, source) in enumerate(zip(samples, sources, strict=True))]
        painter = Sampler(model, self.processor, "training")
        painted = {i: one.picture for i, one in painter.paint(requests, settings)}
        rows = [
            labelled(
                [cover_crop(one, size) for one in (sample.source_image, painted[i], sample.target) if one is not None],
                sample.prompt,
                zoom=2,
            )
            for i, sample in enumerate(samples)
        ]
        return grid([[row] for row in rows])

    def finished(self, model: Any, examples: Iterable[Example]) -> ModelConfig:
        return self.sizes
