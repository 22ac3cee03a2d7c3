"""Examples to the batches of a training step, in numpy: augmentation, and one reader for each objective. Data workers run them.

Augmentation changes source and target alike, so the edit between them stays the same.

A reader defines the buckets (`sizes` by `lengths`) and the largest number of tokens of each row (`tokens`); the plan uses both. It makes a
sample of an example, with one of its prompts (`make_sample`), and stacks samples to a batch (`collate`).
"""

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image, ImageOps

from dim_jax.data.batches import AnswerBatch, CachedBatch, PaintBatch, PictureBatch
from dim_jax.data.cache import CachedExample, HiddenStates
from dim_jax.data.example import JUDGEMENT, Example, Kind, Texts
from dim_jax.data.row_stats import RowStats
from dim_jax.errors import InputError, input_errors
from dim_jax.processing.buckets import Bucket
from dim_jax.processing.inputs import EncoderInputs, offset_picture_tokens
from dim_jax.processing.pictures import as_rgb, autoencoder_pixels_uint8, translate
from dim_jax.processing.processor import Processor

Text = Literal["instruction", "blueprint"]
Sizes = tuple[tuple[int, int], ...]  # (height, width) in pixels
BatchIndices = Int[np.ndarray, " b"]  # of the samples in the global batch, if this process has a part of it
CAPTION_PROMPT = "Describe this picture."
# Conditions are padded to multiples of it, where their bucket is as long. So a bucket that is a multiple itself stays as it is with Qwen's
# template of 16 tokens: TPUs' kernel reads 128 keys at a time, and to pad them in every block would cost more than 16 of them do.
CONDITION_STEP = 64


@dataclass(frozen=True)
class Augment:
    """Augments examples at random.

    Attributes:
        shift: largest translation in pixels, to each side.
        mirrored: rules whose examples are mirrored, left to right, with probability 1/2; they must not name a side.
        recoloured: rules whose examples get other hues with probability 1/2 (greys and white stay); they must not name a colour.
    """

    shift: int = 0
    mirrored: Collection[str] = ()
    recoloured: Collection[str] = ()

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The example, changed or not; changed pictures are RGB.

        Raises:
            InputError: a picture cannot become RGB (`as_rgb`).
        """
        changes = []
        if self.shift:
            right, down = (int(offset) for offset in rng.integers(-self.shift, self.shift, 2, endpoint=True))
            changes.append(partial(translate, right=right, down=down))
        if example.rule in self.mirrored and rng.random() < 0.5:
            changes.append(ImageOps.mirror)
        if example.rule in self.recoloured and rng.random() < 0.5:
            changes.append(partial(hue_rotate, angle=rng.uniform(0, 2 * np.pi)))
        if not changes:
            return example
        source = None if example.source is None else _apply(example.source, changes)
        return replace(example, source=source, target=_apply(example.target, changes))


def _apply(image: Image.Image, changes: Iterable[Callable[[Image.Image], Image.Image]]) -> Image.Image:
    image = as_rgb(image)
    for change in changes:
        image = change(image)
    return image


def hue_rotate(image: Image.Image, angle: float) -> Image.Image:
    """The RGB picture with its colours rotated around the grey axis by an angle in radians, clipped to the RGB cube.

    Source: Rodrigues' rotation formula about (1, 1, 1) / sqrt(3).
    """
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    matrix = np.cos(angle) * np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) / 3
    return image.convert("RGB", matrix=tuple(np.pad(matrix, ((0, 0), (0, 1))).ravel().tolist()))


class Sample(NamedTuple):
    """One row of a batch: the example's key, prompt and pictures for the encoder, its answer, and the target picture."""

    key: str
    prompt: str
    pictures: tuple[Image.Image, ...]
    answer: str
    target: Image.Image


@dataclass(frozen=True)
class PictureReader:
    """For the autoencoder: target pictures in one of `sizes`, half of them mirrored."""

    sizes: Sizes
    lengths: tuple[int, ...] = (0,)  # it reads no tokens

    def tokens(self, stats: RowStats, *, kind: Kind) -> Int[np.ndarray, " n"]:
        return np.zeros(len(stats), np.int64)

    def make_sample(self, example: Example, rng: np.random.Generator) -> Sample:
        mirrored = rng.random() < 0.5
        target = example.target.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else example.target
        return Sample(example.key, "", (), "", target)

    def collate(self, samples: Sequence[Sample], bucket: Bucket, rows: BatchIndices | None = None) -> PictureBatch:
        return PictureBatch(_stack_pixels([sample.target for sample in samples], bucket))


@dataclass(frozen=True)
class AnswerReader:
    """For the encoder as a language model: captions of pictures, blueprints of edits, judgements of results beside their sources.

    `lengths` are the buckets of tokens.
    """

    processor: Processor
    lengths: tuple[int, ...]
    sizes: Sizes = ((0, 0),)  # no target pictures

    def tokens(self, stats: RowStats, *, kind: Kind) -> Int[np.ndarray, " n"]:
        pictures = 2 if kind == JUDGEMENT else 1
        around = self.processor.overhead_tokens(pictures=pictures, generation_prompt=True) + 1  # and the answer's end
        if kind != "caption":
            return around + stats.texts + stats.blueprint
        return around + len(self.processor.tokenizer.encode(CAPTION_PROMPT)) + stats.texts

    def make_sample(self, example: Example, rng: np.random.Generator) -> Sample:
        text = _choose(example.texts, rng)
        if example.source is None:
            return Sample(example.key, CAPTION_PROMPT, (example.target,), text, example.target)
        if example.blueprint is None:
            raise InputError(f"{example.key} has no blueprint, which the encoder should learn. Write blueprints first (`dim design`).")
        pictures = (example.source, example.target) if example.rule == JUDGEMENT else (example.source,)
        return Sample(example.key, text, pictures, example.blueprint, example.target)

    def collate(self, samples: Sequence[Sample], bucket: Bucket, rows: BatchIndices | None = None) -> AnswerBatch:
        inputs, answer = self.processor.with_answers(*_turns(samples), [sample.answer for sample in samples], lengths=(bucket.tokens,))
        return AnswerBatch(_in_global_batch(inputs, rows, self.processor), answer)


@dataclass(frozen=True)
class PaintReader:
    """For the diffusion model. `text`: the prompt of an edit with a blueprint is the blueprint, or the instruction alone."""

    processor: Processor
    lengths: tuple[int, ...]
    sizes: Sizes
    text: Text

    def tokens(self, stats: RowStats, *, kind: Kind) -> Int[np.ndarray, " n"]:
        edit = kind == "edit"
        blueprint = stats.blueprint if edit and self.text == "blueprint" else np.zeros_like(stats.texts)
        return self.processor.overhead_tokens(pictures=int(edit)) + np.where(blueprint > 0, blueprint, stats.texts)

    def prompts(self, texts: Texts, *, edit: bool) -> tuple[str, ...]:
        """The prompts of a row: its blueprint, or each of its texts."""
        return (texts.blueprint,) if edit and self.text == "blueprint" and texts.blueprint is not None else texts.texts

    def condition_tokens(self, texts: Texts, *, edit: bool) -> list[int]:
        """Number of condition tokens with each of the prompts."""
        return [self.processor.condition_tokens(text, pictures=int(edit)) for text in self.prompts(texts, edit=edit)]

    def choose_prompt(self, texts: Texts, rng: np.random.Generator, *, edit: bool) -> str:
        """One of the prompts, at random."""
        return _choose(self.prompts(texts, edit=edit), rng)

    def make_sample(self, example: Example, rng: np.random.Generator) -> Sample:
        return self.sample(example, self.choose_prompt(Texts(example.texts, example.blueprint), rng, edit=example.source is not None))

    def sample(self, example: Example, prompt: str) -> Sample:
        """The sample with that prompt."""
        return Sample(example.key, prompt, () if example.source is None else (example.source,), "", example.target)

    def collate(self, samples: Sequence[Sample], bucket: Bucket, rows: BatchIndices | None = None) -> PaintBatch:
        inputs = _in_global_batch(self.turns(samples, bucket), rows, self.processor)
        return PaintBatch(inputs, *self.pixels(samples, bucket), self.condition_length(bucket))

    def condition_length(self, bucket: Bucket) -> int:
        """Tokens that the conditions of a batch are padded to: those of the bucket without the template's, which no condition has."""
        tokens = bucket.tokens - self.processor.overhead_tokens(pictures=0)
        return min(math.ceil(tokens / CONDITION_STEP) * CONDITION_STEP, bucket.tokens, self.processor.condition_length)

    def turns(self, samples: Sequence[Sample], bucket: Bucket) -> EncoderInputs:
        return self.processor(*_turns(samples), lengths=(bucket.tokens,))

    def pixels(self, samples: Sequence[Sample], bucket: Bucket) -> tuple[UInt8[np.ndarray, "b h w 3"], UInt8[np.ndarray, "b h w 3"] | None]:
        """Target pictures, and source pictures of edits."""
        sources = [picture for sample in samples for picture in sample.pictures]
        return _stack_pixels([sample.target for sample in samples], bucket), _stack_pixels(sources, bucket) if sources else None


class CachedSample(NamedTuple):
    """One row of a batch from a cache: the example's key, the hidden states of one prompt, and latents."""

    key: str
    states: HiddenStates
    target: np.ndarray
    source: np.ndarray | None


@dataclass(frozen=True)
class CachedReader:
    """For the diffusion model, from a cache: with the buckets and prompts of `paint`, which would load the same rows online."""

    paint: PaintReader

    @property
    def lengths(self) -> tuple[int, ...]:
        return self.paint.lengths

    @property
    def sizes(self) -> Sizes:
        return self.paint.sizes

    def tokens(self, stats: RowStats, *, kind: Kind) -> Int[np.ndarray, " n"]:
        return self.paint.tokens(stats, kind=kind)

    def make_sample(self, example: CachedExample, rng: np.random.Generator) -> CachedSample:
        prompt = self.paint.choose_prompt(example.texts, rng, edit=example.edit)
        return CachedSample(example.key, example.states(prompt), example.target, example.source)

    def collate(self, samples: Sequence[CachedSample], bucket: Bucket, rows: BatchIndices | None = None) -> CachedBatch:
        message = "its records in the cache have other shapes, as those of another cache ({}). Write the cache again.".format
        with input_errors(message, ValueError, IndexError):
            return self._stack(samples, bucket)

    def _stack(self, samples: Sequence[CachedSample], bucket: Bucket) -> CachedBatch:
        all_hidden = [sample.states.hidden for sample in samples]
        hidden = np.zeros((len(samples), self.paint.condition_length(bucket), all_hidden[0].shape[1]), all_hidden[0].dtype)
        mask = np.zeros(hidden.shape[:2], bool)
        for row, states in enumerate(all_hidden):
            hidden[row, : len(states)], mask[row, : len(states)] = states, True
        scales, sources = _stack_or_none([sample.states.scale for sample in samples]), _stack_or_none([sample.source for sample in samples])
        return CachedBatch(hidden, scales, mask, np.stack([sample.target for sample in samples]), sources)


Reader = PictureReader | AnswerReader | PaintReader | CachedReader


def buckets(reader: Reader) -> list[Bucket]:
    """Every batch shape of a reader."""
    return [Bucket(*size, tokens) for size in reader.sizes for tokens in sorted(reader.lengths)]


def _in_global_batch(inputs: EncoderInputs, rows: BatchIndices | None, processor: Processor) -> EncoderInputs:
    return inputs if rows is None else offset_picture_tokens(inputs, rows, processor.layout)


def _choose(texts: Sequence[str], rng: np.random.Generator) -> str:
    return texts[int(rng.integers(len(texts)))]  # as `rng.choice`, which makes an array of the texts first


def _turns(samples: Sequence[Sample]) -> tuple[list[str], list[tuple[Image.Image, ...]]]:
    return [sample.prompt for sample in samples], [sample.pictures for sample in samples]


def _stack_or_none(arrays: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """The arrays stacked; None if the rows have none (rows of a batch are all of one kind)."""
    present = [array for array in arrays if array is not None]
    return np.stack(present) if present else None


def _stack_pixels(pictures: Sequence[Image.Image], bucket: Bucket) -> UInt8[np.ndarray, "b h w 3"]:
    return np.stack([autoencoder_pixels_uint8(picture, (bucket.height, bucket.width)) for picture in pictures])
