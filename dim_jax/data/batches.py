"""From examples to the arrays of a training step, in numpy: each objective has one reader, which workers that load data run.

A reader says which buckets there are (`sizes` by `lengths`) and how many tokens each row of a source needs at most (`tokens`): from that
the plan chooses. Then it chooses a wording by the sample's own random numbers (`choose`), and stacks (`collate`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np
from jaxtyping import Bool, Int, UInt8
from PIL import Image

from dim_jax.data.buckets import Bucket
from dim_jax.data.facts import Facts
from dim_jax.data.inputs import EncoderInputs, in_larger_batch
from dim_jax.data.pairs import Example
from dim_jax.data.pictures import autoencoder_samples
from dim_jax.data.processor import Processor
from dim_jax.errors import InputError

Text = Literal["instruction", "blueprint"]
Sizes = tuple[tuple[int, int], ...]  # (height, width) in pixels
Rows = Int[np.ndarray, " b"]  # places in the whole batch, where samples are not all of it
DESCRIBE = "Describe this picture."


class Sample(NamedTuple):
    """One row of a batch: the example's name, what the encoder reads (prompt, picture), what it would answer, what is to be painted."""

    key: str
    prompt: str
    seen: Image.Image | None
    answer: str
    target: Image.Image


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PictureBatch:
    """Pictures to encode and decode again, in 8 bits, as they travel to the accelerator."""

    samples: UInt8[Any, "b h w 3"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AnswerBatch:
    """Turns with their answers; `answer` is True at the tokens that are to be predicted."""

    inputs: EncoderInputs
    answer: Bool[Any, "b t"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PaintBatch:
    """Turns, what to paint, and what to paint it from (None: from the text alone), in 8 bits."""

    inputs: EncoderInputs
    target: UInt8[Any, "b h w 3"]
    source: UInt8[Any, "b h w 3"] | None


Batch = PictureBatch | AnswerBatch | PaintBatch


def _row_axes(batch: type) -> dict[str, int]:
    found = {}
    for field in fields(batch):
        for shape in (field.type, *get_args(field.type)):
            if letters := getattr(shape, "dim_str", "").split():  # an array's dimensions, as jaxtyping keeps them
                found[field.name] = letters.index("b" if "b" in letters else "i")
    return found


# Name of an array in a batch -> its axis of rows, or of pictures, as its shape above says (b, i): what is spread over devices.
ROW_AXES = _row_axes(EncoderInputs) | _row_axes(PictureBatch) | _row_axes(AnswerBatch) | _row_axes(PaintBatch)


@dataclass(frozen=True)
class PictureReader:
    """For the autoencoder: targets of one of `sizes`, half of them mirrored."""

    sizes: Sizes
    lengths: tuple[int, ...] = (0,)  # it reads no tokens

    def tokens(self, facts: Facts, *, edit: bool) -> Int[np.ndarray, " n"]:
        return np.zeros(len(facts), np.int64)

    def choose(self, example: Example, rng: np.random.Generator) -> Sample:
        mirrored = rng.random() < 0.5
        target = example.target.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else example.target
        return Sample(example.key, "", None, "", target)

    def collate(self, samples: Sequence[Sample], bucket: Bucket, rows: Rows | None = None) -> PictureBatch:
        return PictureBatch(_samples([sample.target for sample in samples], bucket))


@dataclass(frozen=True)
class AnswerReader:
    """For the encoder as a writer: captions of pictures, blueprints of edits. `lengths` are the buckets of tokens."""

    processor: Processor
    lengths: tuple[int, ...]
    sizes: Sizes = ((0, 0),)  # it paints nothing

    def tokens(self, facts: Facts, *, edit: bool) -> Int[np.ndarray, " n"]:
        around = self.processor.turn_tokens(pictures=1, generation_prompt=True) + 1  # and the answer's end
        if edit:
            return around + facts.texts + facts.blueprint
        return around + len(self.processor.tokenizer.encode(DESCRIBE)) + facts.texts

    def choose(self, example: Example, rng: np.random.Generator) -> Sample:
        text = str(rng.choice(example.texts))
        if example.source is None:
            return Sample(example.key, DESCRIBE, example.target, text, example.target)
        if example.blueprint is None:
            raise InputError(f"{example.key} has no blueprint, which the encoder is to learn. Write blueprints first (`dim design`).")
        return Sample(example.key, text, example.source, example.blueprint, example.target)

    def collate(self, samples: Sequence[Sample], bucket: Bucket, rows: Rows | None = None) -> AnswerBatch:
        inputs, answer = self.processor.answered(
            [sample.prompt for sample in samples], _seen(samples), [sample.answer for sample in samples], lengths=(bucket.tokens,)
        )
        return AnswerBatch(_placed(inputs, rows, self.processor), answer)


@dataclass(frozen=True)
class PaintReader:
    """For the painter: `text` says what it is told of an edit that has a blueprint: that, or the bare instruction."""

    processor: Processor
    lengths: tuple[int, ...]
    sizes: Sizes
    text: Text

    def tokens(self, facts: Facts, *, edit: bool) -> Int[np.ndarray, " n"]:
        told = facts.blueprint if edit and self.text == "blueprint" else np.zeros_like(facts.texts)
        return self.processor.turn_tokens(pictures=int(edit)) + np.where(told > 0, told, facts.texts)

    def choose(self, example: Example, rng: np.random.Generator) -> Sample:
        told = example.blueprint if self.text == "blueprint" and example.source is not None else None
        prompt = str(rng.choice(example.texts)) if told is None else told
        return Sample(example.key, prompt, example.source, "", example.target)

    def collate(self, samples: Sequence[Sample], bucket: Bucket, rows: Rows | None = None) -> PaintBatch:
        inputs = self.processor([sample.prompt for sample in samples], _seen(samples), lengths=(bucket.tokens,))
        sources = [sample.seen for sample in samples if sample.seen is not None]
        targets = _samples([sample.target for sample in samples], bucket)
        return PaintBatch(_placed(inputs, rows, self.processor), targets, _samples(sources, bucket) if sources else None)


Reader = PictureReader | AnswerReader | PaintReader


def buckets(reader: Reader) -> list[Bucket]:
    """Every shape of its batches."""
    return [Bucket(*size, tokens) for size in reader.sizes for tokens in sorted(reader.lengths)]


def _placed(inputs: EncoderInputs, rows: Rows | None, processor: Processor) -> EncoderInputs:
    return inputs if rows is None else in_larger_batch(inputs, rows, processor.layout)


def _seen(samples: Sequence[Sample]) -> list[list[Image.Image]]:
    return [[] if sample.seen is None else [sample.seen] for sample in samples]


def _samples(pictures: Sequence[Image.Image], bucket: Bucket) -> UInt8[np.ndarray, "b h w 3"]:
    return np.stack([autoencoder_samples(picture, (bucket.height, bucket.width)) for picture in pictures])
