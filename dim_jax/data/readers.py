"""From examples to the arrays of a training step, in numpy: each objective has one reader, which workers that load data run.

A reader says which buckets there are (`sizes` by `lengths`) and how many tokens each row of a source needs at most (`tokens`): from that
the plan chooses. Then it chooses a wording by the sample's own random numbers (`choose`), and stacks (`collate`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from dim_jax.data.batches import AnswerBatch, CachedBatch, PaintBatch, PictureBatch
from dim_jax.data.buckets import Bucket
from dim_jax.data.cache import CachedExample, States
from dim_jax.data.example import Example, Texts
from dim_jax.data.inputs import EncoderInputs, in_larger_batch
from dim_jax.data.pictures import autoencoder_samples
from dim_jax.data.processor import Processor
from dim_jax.data.row_stats import RowStats
from dim_jax.errors import InputError

Text = Literal["instruction", "blueprint"]
Sizes = tuple[tuple[int, int], ...]  # (height, width) in pixels
Rows = Int[np.ndarray, " b"]  # places in the whole batch, where samples are not all of it
DESCRIBE = "Describe this picture."


class Sample(NamedTuple):
    """One row of a batch: the example's name, what the encoder reads (prompt, picture), what it would answer, what is to be painted."""

    key: str
    prompt: str
    source_image: Image.Image | None
    answer: str
    target: Image.Image


@dataclass(frozen=True)
class PictureReader:
    """For the autoencoder: targets of one of `sizes`, half of them mirrored."""

    sizes: Sizes
    lengths: tuple[int, ...] = (0,)  # it reads no tokens

    def tokens(self, facts: RowStats, *, edit: bool) -> Int[np.ndarray, " n"]:
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

    def tokens(self, facts: RowStats, *, edit: bool) -> Int[np.ndarray, " n"]:
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
            [sample.prompt for sample in samples], _shown(samples), [sample.answer for sample in samples], lengths=(bucket.tokens,)
        )
        return AnswerBatch(_placed(inputs, rows, self.processor), answer)


@dataclass(frozen=True)
class PaintReader:
    """For the painter: `text` says what it is told of an edit that has a blueprint: that, or the bare instruction."""

    processor: Processor
    lengths: tuple[int, ...]
    sizes: Sizes
    text: Text

    def tokens(self, facts: RowStats, *, edit: bool) -> Int[np.ndarray, " n"]:
        told = facts.blueprint if edit and self.text == "blueprint" else np.zeros_like(facts.texts)
        return self.processor.turn_tokens(pictures=int(edit)) + np.where(told > 0, told, facts.texts)

    def wordings(self, told: Texts, *, edit: bool) -> tuple[str, ...]:
        """What a row may be told by."""
        return (told.blueprint,) if edit and self.text == "blueprint" and told.blueprint is not None else told.texts

    def condition_tokens(self, told: Texts, *, edit: bool) -> list[int]:
        """How many tokens become the condition with each of the wordings."""
        return [self.processor.condition_tokens(text, pictures=int(edit)) for text in self.wordings(told, edit=edit)]

    def word(self, told: Texts, rng: np.random.Generator, *, edit: bool) -> str:
        """What a row is told by."""
        return str(rng.choice(self.wordings(told, edit=edit)))

    def choose(self, example: Example, rng: np.random.Generator) -> Sample:
        prompt = self.word(Texts(example.texts, example.blueprint), rng, edit=example.source is not None)
        return Sample(example.key, prompt, example.source, "", example.target)

    def collate(self, samples: Sequence[Sample], bucket: Bucket, rows: Rows | None = None) -> PaintBatch:
        return PaintBatch(_placed(self.turns(samples, bucket), rows, self.processor), *self.pixels(samples, bucket))

    def turns(self, samples: Sequence[Sample], bucket: Bucket) -> EncoderInputs:
        return self.processor([sample.prompt for sample in samples], _shown(samples), lengths=(bucket.tokens,))

    def pixels(self, samples: Sequence[Sample], bucket: Bucket) -> tuple[UInt8[np.ndarray, "b h w 3"], UInt8[np.ndarray, "b h w 3"] | None]:
        """Targets, and sources of edits."""
        sources = [sample.source_image for sample in samples if sample.source_image is not None]
        return _samples([sample.target for sample in samples], bucket), _samples(sources, bucket) if sources else None


class CachedSample(NamedTuple):
    """One row of a batch from a cache: the example's name, the states of one of its wordings, its latents."""

    key: str
    states: States
    target: np.ndarray
    source: np.ndarray | None


@dataclass(frozen=True)
class CachedReader:
    """For the painter, from a cache: the buckets and wordings of `paint`, in batches of the shapes that it would give the others."""

    paint: PaintReader

    @property
    def lengths(self) -> tuple[int, ...]:
        return self.paint.lengths

    @property
    def sizes(self) -> Sizes:
        return self.paint.sizes

    def tokens(self, facts: RowStats, *, edit: bool) -> Int[np.ndarray, " n"]:
        return self.paint.tokens(facts, edit=edit)

    def choose(self, example: CachedExample, rng: np.random.Generator) -> CachedSample:
        prompt = self.paint.word(example.told, rng, edit=example.edit)
        return CachedSample(example.key, example.states(prompt), example.target, example.source)

    def collate(self, samples: Sequence[CachedSample], bucket: Bucket, rows: Rows | None = None) -> CachedBatch:
        all_hidden = [sample.states.hidden for sample in samples]
        length = min(bucket.tokens, self.paint.processor.condition_length)
        hidden = np.zeros((len(samples), length, all_hidden[0].shape[1]), all_hidden[0].dtype)
        mask = np.zeros(hidden.shape[:2], bool)
        for row, states in enumerate(all_hidden):
            hidden[row, : len(states)], mask[row, : len(states)] = states, True
        scales, sources = _stacked([sample.states.scale for sample in samples]), _stacked([sample.source for sample in samples])
        return CachedBatch(hidden, scales, mask, np.stack([sample.target for sample in samples]), sources)


Reader = PictureReader | AnswerReader | PaintReader | CachedReader


def buckets(reader: Reader) -> list[Bucket]:
    """Every shape of its batches."""
    return [Bucket(*size, tokens) for size in reader.sizes for tokens in sorted(reader.lengths)]


def _placed(inputs: EncoderInputs, rows: Rows | None, processor: Processor) -> EncoderInputs:
    return inputs if rows is None else in_larger_batch(inputs, rows, processor.layout)


def _shown(samples: Sequence[Sample]) -> list[list[Image.Image]]:
    return [[] if sample.source_image is None else [sample.source_image] for sample in samples]


def _stacked(arrays: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """None if a row has none: all are of one kind."""
    there = [array for array in arrays if array is not None]
    return np.stack(there) if there else None


def _samples(pictures: Sequence[Image.Image], bucket: Bucket) -> UInt8[np.ndarray, "b h w 3"]:
    return np.stack([autoencoder_samples(picture, (bucket.height, bucket.width)) for picture in pictures])
