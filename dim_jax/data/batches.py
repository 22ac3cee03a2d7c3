"""From examples to the arrays of a training step, in numpy: each objective has one reader, which workers that load data run.

A reader first chooses (`choose`: which wording, from the sample's own random numbers), then stacks (`collate`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from dim_jax.data.inputs import EncoderInputs
from dim_jax.data.pairs import Example
from dim_jax.data.pictures import autoencoder_samples
from dim_jax.data.processor import Processor
from dim_jax.errors import InputError

Text = Literal["instruction", "blueprint"]
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
    """For the autoencoder: targets of `side` x `side` pixels, half of them mirrored."""

    side: int

    def choose(self, example: Example, rng: np.random.Generator) -> Sample:
        mirrored = rng.random() < 0.5
        target = example.target.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else example.target
        return Sample(example.key, "", None, "", target)

    def collate(self, samples: Sequence[Sample]) -> PictureBatch:
        return PictureBatch(_samples([sample.target for sample in samples], self.side))


@dataclass(frozen=True)
class AnswerReader:
    """For the encoder as a writer: captions of pictures, blueprints of edits. `lengths` are the buckets of tokens."""

    processor: Processor
    lengths: tuple[int, ...]

    def choose(self, example: Example, rng: np.random.Generator) -> Sample:
        text = str(rng.choice(example.texts))
        if example.source is None:
            return Sample(example.key, DESCRIBE, example.target, text, example.target)
        return Sample(example.key, text, example.source, _blueprint(example), example.target)

    def collate(self, samples: Sequence[Sample]) -> AnswerBatch:
        inputs, answer = self.processor.answered(
            [sample.prompt for sample in samples], _seen(samples), [sample.answer for sample in samples], lengths=self.lengths
        )
        return AnswerBatch(inputs, answer)


@dataclass(frozen=True)
class PaintReader:
    """For the painter: `text` says what it is told of an edit, the bare instruction or the blueprint."""

    processor: Processor
    lengths: tuple[int, ...]
    side: int
    text: Text

    def choose(self, example: Example, rng: np.random.Generator) -> Sample:
        plain = example.source is None or self.text == "instruction"
        prompt = str(rng.choice(example.texts)) if plain else _blueprint(example)
        return Sample(example.key, prompt, example.source, "", example.target)

    def collate(self, samples: Sequence[Sample]) -> PaintBatch:
        inputs = self.processor([sample.prompt for sample in samples], _seen(samples), lengths=self.lengths)
        sources = [sample.seen for sample in samples if sample.seen is not None]
        targets = _samples([sample.target for sample in samples], self.side)
        return PaintBatch(inputs, targets, _samples(sources, self.side) if sources else None)


Reader = PictureReader | AnswerReader | PaintReader


class Keyed(NamedTuple):
    """A batch, and beside it the names of its examples, row by row, which stay on the host."""

    keys: tuple[str, ...]
    batch: PictureBatch | AnswerBatch | PaintBatch


def keyed(reader: Reader, samples: Sequence[Sample]) -> Keyed:
    """The samples stacked by their reader."""
    return Keyed(tuple(sample.key for sample in samples), reader.collate(samples))


def _seen(samples: Sequence[Sample]) -> list[list[Image.Image]]:
    return [[] if sample.seen is None else [sample.seen] for sample in samples]


def _samples(pictures: Sequence[Image.Image], side: int) -> UInt8[np.ndarray, "b h w 3"]:
    return np.stack([autoencoder_samples(picture, (side, side)) for picture in pictures])


def _blueprint(example: Example) -> str:
    if example.blueprint is None:
        raise InputError(f"{example.key} has no blueprint. Train on its instructions (data.text), or write blueprints first.")
    return example.blueprint
