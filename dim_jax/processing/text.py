"""Prompts to the inputs of an encoder that reads text alone, SANA's: an instruction before them, and which tokens become the condition."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from dim_jax.errors import check, check_unicode
from dim_jax.processing.chat import load_tokenizer
from dim_jax.processing.inputs import EncoderInputs, encoder_inputs
from dim_jax.processing.processor import fitting_length

# Before every prompt of the published SANA models, which were trained with it ("complex human instruction", arXiv 2410.10629).
INSTRUCTION = """\
Given a user prompt, generate an 'Enhanced prompt' that provides detailed visual descriptions suitable for image generation. Evaluate the \
level of detail in the user prompt:
- If the prompt is simple, focus on adding specifics about colors, shapes, sizes, textures, and spatial relationships to create vivid and \
concrete scenes.
- If the prompt is already detailed, refine and enhance the existing details slightly without overcomplicating.
Here are examples of how to transform or refine prompts:
- User Prompt: A cat sleeping -> Enhanced: A small, fluffy white cat curled up in a round shape, sleeping peacefully on a warm sunny \
windowsill, surrounded by pots of blooming red flowers.
- User Prompt: A busy city street -> Enhanced: A bustling city street scene at dusk, featuring glowing street lamps, a diverse crowd of \
people in colorful clothing, and a double-decker bus passing by towering glass skyscrapers.
Please generate only the enhanced description for the prompt below and avoid including any additional commentary or evaluations:
User Prompt: """


class TextTokenizer:
    """A tokenizer that adds its own first token; `name` (folder or hub id) is for errors."""

    def __init__(self, tokenizer: Tokenizer, name: str):
        self.name, self._tokenizer = name, tokenizer
        self.max_id = max(tokenizer.get_vocab().values())
        tokenizer.no_padding()
        tokenizer.no_truncation()

    def encode(self, text: str) -> list[int]:
        """The ids of a text, with the first token."""
        return self._tokenizer.encode(text).ids


@dataclass(frozen=True)
class TextProcessor:
    """Prompts as `EncoderInputs`. The condition is the first token and those of the prompt, without the instruction's.

    `condition_length` is the number of condition tokens of the model. `null_prompt` stands for no prompt.
    """

    tokenizer: TextTokenizer
    condition_length: int = 300
    instruction: str = INSTRUCTION
    null_prompt: str | None = ""

    @classmethod
    def for_model(cls, tokenizer: str | os.PathLike, config: Any) -> "TextProcessor":
        """The processor of a model of these sizes (`models.dim.DimConfig`).

        Raises:
            InputError: the tokenizer cannot be loaded, or has more ids than the encoder.
        """
        loaded, size = TextTokenizer(load_tokenizer(tokenizer), str(tokenizer)), config.encoder.vocab_size
        check(loaded.max_id < size, f"{tokenizer}: has ids up to {loaded.max_id}, the encoder has {size}. Use the tokenizer of this model.")
        return cls(loaded, config.sana.condition_length)

    def at(self, resolution: int) -> "TextProcessor":
        """This processor, for it reads no pictures."""
        return self

    def for_negative(self) -> "TextProcessor":
        """The processor of negative prompts, which stand without the instruction."""
        return replace(self, instruction="")

    def __call__(
        self,
        prompts: Sequence[str],
        pictures: Sequence[Sequence[Image.Image]],
        *,
        lengths: Sequence[int] | None = None,
        overflow: Literal["error", "keep_last"] = "error",
    ) -> EncoderInputs:
        """One row per prompt, in lower case, padded on the right; arguments as of `Processor`.

        Raises:
            InputError: there is a picture, a prompt is not valid Unicode, or it exceeds `condition_length` or every bucket.
        """
        check(not any(pictures), "This model paints from text alone. Use `dim generate`, or a model that edits.")
        rows, skip = [], len(self.tokenizer.encode(self.instruction)) - 1 if self.instruction else 1
        for prompt in prompts:
            check_unicode(prompt, "The prompt")
            ids = self.tokenizer.encode(self.instruction + prompt.lower().strip())
            count = 1 + len(ids) - skip
            check(
                overflow == "keep_last" or count <= self.condition_length,
                f"The prompt {prompt[:40]!r} is too long: it has {count:,} tokens, the condition holds {self.condition_length:,}. Shorten "
                "it, or pass --keep-last to drop its first tokens.",
            )
            rows.append(ids)
        t = fitting_length(max(map(len, rows)), lengths)
        input_ids, (mask, user_turn) = np.zeros((len(rows), t), np.int32), np.zeros((2, len(rows), t), bool)
        for i, ids in enumerate(rows):
            input_ids[i, : len(ids)], mask[i, : len(ids)] = ids, True
            user_turn[i, [0, *range(skip, len(ids))]] = True
        return encoder_inputs(input_ids, mask, user_turn, [], [], image_token_id=-1)
