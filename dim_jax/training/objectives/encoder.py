"""The encoder as a writer: captions of pictures and blueprints of edits, token by token."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from dim_jax.config import Config
from dim_jax.data.batches import AnswerBatch
from dim_jax.data.chat import IM_END
from dim_jax.data.example import Example
from dim_jax.data.processor import Processor
from dim_jax.data.readers import AnswerReader
from dim_jax.models import flops
from dim_jax.models.generate import GenerationSettings, generate
from dim_jax.models.precision import compute_dtype
from dim_jax.processes import to_host
from dim_jax.weights.model_config import ModelConfig


@dataclass(frozen=True)
class EncoderObjective:
    """Cross-entropy of the answer's tokens, as the published encoder was trained before it was frozen."""

    config: Config
    sizes: ModelConfig
    processor: Processor

    PARTS: ClassVar = ("encoder",)

    @property
    def reader(self) -> AnswerReader:
        return AnswerReader(self.processor, tuple(self.config.data.lengths))

    @cached_property
    def model(self) -> nnx.Module:
        make = self.sizes.modules(dtype=compute_dtype(self.config.model.dtype))["encoder"]
        return nnx.eval_shape(lambda: nnx.Dict(encoder=make(nnx.Rngs(0))))

    @property
    def trainable_model(self) -> nnx.Module:
        return self.model

    def loss(self, model: Any, batch: AnswerBatch, key: PRNGKeyArray) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        del key  # nothing here is random
        hidden = model.encoder(batch.inputs)
        counts = jnp.asarray(batch.answer)[:, 1:]
        labels = jnp.asarray(batch.inputs.input_ids)[:, 1:]
        logits = model.encoder.logits(hidden[:, :-1])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        right = (logits.argmax(-1) == labels) & counts
        return (losses * counts).sum() / counts.sum(), {"accuracy": right.sum() / counts.sum()}

    def step_flops(self, batch: AnswerBatch) -> flops.StepFlops:
        config = self.sizes.encoder
        assert config is not None
        b, t = batch.inputs.input_ids.shape
        work = flops.encoder(config, batch.inputs) + flops.logits(config.text, b, t - 1)
        return flops.StepFlops({"encoder": work.step(learns=True)})

    def show(self, model: Any, examples: Sequence[Example]) -> str:
        samples = [self.reader.choose(example, np.random.default_rng(0)) for example in examples]
        inputs = self.processor(
            [sample.prompt for sample in samples],
            [[sample.source_image] for sample in samples if sample.source_image],
            generation_prompt=True,
        )
        tokenizer = self.processor.tokenizer
        settings = GenerationSettings(max_new_tokens=256, stop_tokens=(tokenizer.ids[IM_END],), pad_token=tokenizer.pad_id)
        written = generate(model.encoder, inputs, settings)
        rows = []
        tokens, lengths = (np.asarray(to_host(array)) for array in written)
        for example, sample, new, length in zip(examples, samples, tokens, lengths, strict=True):
            text = tokenizer.decode(new[:length].tolist())
            rows.append(f"## {example.key}\n\n{sample.prompt}\n\nwritten: {text}\n\nwanted: {sample.answer}\n")
        return "\n".join(rows)

    def finished(self, model: Any, examples: Iterable[Example]) -> ModelConfig:
        return self.sizes
