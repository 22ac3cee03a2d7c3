"""Prompts and pictures to the encoder's inputs, in numpy: chat tokens, resized pictures, patches, padding to a bucket."""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from dim_jax.errors import InputError, check
from dim_jax.processing.chat import IM_END, ChatTokenizer, Turn
from dim_jax.processing.inputs import EncoderInputs, VisionLayout, encoder_inputs
from dim_jax.processing.pictures import MAX_ASPECT_RATIO, as_rgb, in_threads, resize

# Qwen2.5-VL's own: 4 to 16384 picture tokens.
MIN_PIXELS = 4 * 28 * 28
MAX_PIXELS = 16384 * 28 * 28

QWEN_LAYOUT = VisionLayout()

Patches = tuple[UInt8[np.ndarray, "p c"], tuple[int, int]]  # of one picture, with their grid (rows, columns)


def smart_resize(height: int, width: int, factor: int = 28, min_pixels: int = MIN_PIXELS, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """The nearest size (height, width) whose sides are multiples of `factor`.

    Outside [min_pixels, max_pixels] the picture is scaled to the nearer bound first, keeping its aspect ratio as well as multiples
    allow. Source: Qwen2.5-VL. Halves round to even.

    Raises:
        InputError: one side is more than 200 times the other.
    """
    check(
        max(height, width) <= MAX_ASPECT_RATIO * min(height, width),
        f"The picture is {width} x {height} pixels; the longer side may be at most {MAX_ASPECT_RATIO} times the shorter. Crop it.",
    )
    rows, columns = (max(factor, round(side / factor) * factor) for side in (height, width))
    if rows * columns > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows, columns = (max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))
    elif rows * columns < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows, columns = (math.ceil(side * grow / factor) * factor for side in (height, width))
    return rows, columns


def resize_for_encoder(
    picture: Image.Image, mode: str, resolution: int, factor: int = 28, min_pixels: int = MIN_PIXELS, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Any PIL picture as RGB at the size whose patches the encoder reads (PIL's bicubic on 8-bit samples).

    "square" forces the square smart_resize(resolution, resolution), as the published models read it; "native" keeps the aspect
    ratio. Both then apply smart_resize within [min_pixels, max_pixels].

    Raises:
        InputError: the mode is neither of them, the picture is too thin for the native mode, or it cannot become RGB.
    """
    picture = as_rgb(picture)
    for height, width in _target_sizes((picture.height, picture.width), mode, resolution, factor, min_pixels, max_pixels):
        picture = resize(picture, (width, height), Image.Resampling.BICUBIC)
    return picture


def _target_sizes(
    size: tuple[int, int], mode: str, resolution: int, factor: int, min_pixels: int, max_pixels: int
) -> Iterator[tuple[int, int]]:
    """The sizes (height, width) that `resize_for_encoder` brings a picture to, one after the other."""
    check(mode in ("square", "native"), f'The picture mode is "{mode}", but must be "square" (as published) or "native".')
    if mode == "square":
        size = smart_resize(resolution, resolution, factor)
        yield size
    yield smart_resize(*size, factor, min_pixels, max_pixels)


def patchify(image: Image.Image, layout: VisionLayout = QWEN_LAYOUT) -> Patches:
    """An RGB picture, its sides multiples of merge_size * patch_size, as patches of 8-bit samples and their grid (rows, columns).

    Patches of one merge group (2 x 2) are adjacent, groups run in reading order; c is (colour, time, row, column) with the picture
    repeated over time. `normalize` converts them to float32, on the accelerator, since 8 bits take a fourth of the memory.
    """
    side, merge, time = layout.patch_size, layout.merge_size, layout.temporal_patch_size
    rows, columns = image.height // side, image.width // side
    groups = np.asarray(image).reshape(rows // merge, merge, side, columns // merge, merge, side, 3)
    groups = groups.transpose(0, 3, 1, 4, 6, 2, 5)[:, :, :, :, :, None]
    groups = np.broadcast_to(groups, (*groups.shape[:5], time, side, side))
    return groups.reshape(rows * columns, 3 * time * side * side), (rows, columns)


@dataclass(frozen=True)
class Processor:
    """Prompts and pictures as `EncoderInputs`.

    `mode`, `resolution`, `min_pixels` and `max_pixels` size the pictures (`resize_for_encoder`); `condition_length` is the number of
    condition tokens of the model. `null_prompt` stands for no prompt; None: the model has learned what does.
    """

    tokenizer: ChatTokenizer
    mode: str = "square"
    resolution: int = 1024
    min_pixels: int = MIN_PIXELS
    max_pixels: int = MAX_PIXELS
    condition_length: int = 8192
    layout: VisionLayout = QWEN_LAYOUT
    null_prompt: str | None = None

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike, **fields) -> "Processor":
        """A processor with the tokenizer of a local folder, a hub id or a `tokenizer.json`; `fields` are this class's other fields.

        Raises:
            InputError: the tokenizer cannot be loaded or lacks the chat template's special tokens.
        """
        return cls(ChatTokenizer.from_pretrained(name), **fields)

    @property
    def factor(self) -> int:
        """Side in pixels of the area of one picture token."""
        return self.layout.patch_size * self.layout.merge_size

    def at(self, resolution: int) -> "Processor":
        """The same for pictures of another resolution."""
        return replace(self, resolution=resolution)

    def for_negative(self) -> "Processor":
        """The processor of negative prompts, which are read as others are."""
        return self

    def resize(self, picture: Image.Image) -> Image.Image:
        """`resize_for_encoder` with this processor's settings; raises the same."""
        return resize_for_encoder(picture, self.mode, self.resolution, self.factor, self.min_pixels, self.max_pixels)

    def overhead_tokens(self, *, pictures: int, generation_prompt: bool = False) -> int:
        """Number of tokens of a turn with `pictures` square pictures, without those of the prompt."""
        turn = self.tokenizer.turn("a", self._picture_tokens(pictures), generation_prompt=generation_prompt)
        return len(turn.ids) - len(self.tokenizer.encode("a"))

    def condition_tokens(self, prompt: str, *, pictures: int) -> int:
        """Number of tokens of the user turn with a prompt and `pictures` square pictures."""
        begin, end = self.tokenizer.turn(prompt, self._picture_tokens(pictures)).user_turn
        return end - begin

    def _picture_tokens(self, pictures: int) -> list[int]:
        """Number of tokens of each of `pictures` square pictures."""
        square = (self.resolution, self.resolution)
        *_, (height, width) = _target_sizes(square, self.mode, self.resolution, self.factor, self.min_pixels, self.max_pixels)
        return [height * width // self.factor**2] * pictures

    def __call__(
        self,
        prompts: Sequence[str],
        pictures: Sequence[Sequence[Image.Image]],
        *,
        lengths: Sequence[int] | None = None,
        patch_length: int | None = None,
        generation_prompt: bool = False,
        overflow: Literal["error", "keep_last"] = "error",
    ) -> EncoderInputs:
        """One turn per prompt with its own pictures (none is fine), padded on the right.

        `lengths` are buckets of the number of tokens; the smallest that holds all turns is used (None: the longest turn). `patch_length`
        pads pictures to that many patches. `generation_prompt` opens the assistant's turn. `overflow="keep_last"` accepts user
        turns longer than `condition_length`; the connector then drops their first tokens, which are those of the pictures.

        Raises:
            InputError: a prompt is empty and has no picture; a user turn exceeds `condition_length`; a turn exceeds every bucket;
                a picture is unusable or has more patches than `patch_length`.
        """
        turns, patches = self._turns(prompts, pictures, generation_prompt=generation_prompt, overflow=overflow)
        return self._batch(turns, patches, lengths, patch_length)

    def with_answers(
        self,
        prompts: Sequence[str],
        pictures: Sequence[Sequence[Image.Image]],
        answers: Sequence[str],
        *,
        lengths: Sequence[int] | None = None,
        patch_length: int | None = None,
    ) -> tuple[EncoderInputs, Bool[np.ndarray, "b t"]]:
        """Turns with the assistant's answers after them, and a mask of the tokens to predict: the answer and its end.

        Raises:
            InputError: the numbers of prompts and answers differ, or as `__call__`.
        """
        check(len(answers) == len(prompts), f"{len(prompts)} prompts and {len(answers)} answers: give one answer for each prompt.")
        turns, patches = self._turns(prompts, pictures, generation_prompt=True, overflow="error")
        answer_ids = [[*self.tokenizer.encode(answer), self.tokenizer.ids[IM_END]] for answer in answers]
        turns_with_answers = [
            replace(turn, ids=np.append(turn.ids, ids).astype(np.int32)) for turn, ids in zip(turns, answer_ids, strict=True)
        ]
        inputs = self._batch(turns_with_answers, patches, lengths, patch_length)
        position = np.arange(inputs.input_ids.shape[1])
        starts = np.array([len(turn.ids) for turn in turns])
        return inputs, (position >= starts[:, None]) & inputs.mask

    def _turns(
        self, prompts: Sequence[str], pictures: Sequence[Sequence[Image.Image]], *, generation_prompt: bool, overflow: str
    ) -> tuple[list[Turn], list[Patches]]:
        """One turn for each prompt, and the patches of all pictures in reading order."""
        if not prompts or len(prompts) != len(pictures):
            raise InputError(f"{len(prompts)} prompts and {len(pictures)} lists of pictures: give at least one prompt and a list for each.")
        rgb = [as_rgb(picture) for row in pictures for picture in row]  # one after the other: a file may be read for several of them
        patches = in_threads(lambda picture: patchify(self.resize(picture), self.layout), rgb)
        tokens_of_picture = iter([rows * columns // self.layout.group for _, (rows, columns) in patches])
        counts = [[*islice(tokens_of_picture, len(row))] for row in pictures]
        turns = [self._turn(prompt, tokens, generation_prompt=generation_prompt) for prompt, tokens in zip(prompts, counts, strict=True)]
        if overflow == "error":
            for prompt, turn, tokens in zip(prompts, turns, counts, strict=True):
                self._check_length(prompt, turn.user_turn[1] - turn.user_turn[0], sum(tokens))
        return turns, patches

    def _turn(self, prompt: str, picture_tokens: list[int], *, generation_prompt: bool) -> Turn:
        """The tokens of one turn."""
        return self.tokenizer.turn(prompt, picture_tokens, generation_prompt=generation_prompt)

    def _batch(
        self, turns: Sequence[Turn], patches: Sequence[Patches], lengths: Sequence[int] | None, patch_length: int | None
    ) -> EncoderInputs:
        """Turns padded on the right to a bucket."""
        t = fitting_length(max(len(turn.ids) for turn in turns), lengths)
        input_ids = np.full((len(turns), t), self.tokenizer.pad_id, np.int32)
        mask, user_turn = np.zeros((2, len(turns), t), bool)
        for i, turn in enumerate(turns):
            input_ids[i, : len(turn.ids)] = turn.ids
            mask[i, : len(turn.ids)] = True
            user_turn[i, slice(*turn.user_turn)] = True
        return encoder_inputs(
            input_ids,
            mask,
            user_turn,
            [pixels for pixels, _ in patches],
            [grid for _, grid in patches],
            image_token_id=self.tokenizer.image_id,
            layout=self.layout,
            patch_length=patch_length,
        )

    def _check_length(self, prompt: str, tokens: int, picture_tokens: int) -> None:
        if tokens > self.condition_length:
            start = prompt if len(prompt) <= 40 else prompt[:37] + "..."
            raise InputError(
                f"The prompt {start!r} is too long: its turn has {tokens:,} tokens ({picture_tokens:,} of them pictures), the condition "
                f"holds {self.condition_length:,}. Shorten it by {tokens - self.condition_length:,} tokens, take smaller pictures, or pass "
                'overflow="keep_last" (--keep-last) to drop the first tokens (the pictures come first).'
            )


def fitting_length(longest: int, lengths: Sequence[int] | None) -> int:
    """The smallest of `lengths` that holds the longest turn."""
    if lengths is None:
        return longest
    fitting = [length for length in lengths if length >= longest]
    check(
        fitting,
        f"The longest turn has {longest:,} tokens, the longest bucket {max(lengths, default=0):,}. "
        "Shorten the prompt or add a longer bucket.",
    )
    return min(fitting)
