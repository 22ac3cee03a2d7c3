"""Qwen2.5-VL in JAX as the designer: the painter's own encoder, which is a complete language model, or another one."""

import asyncio
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float
from PIL import Image

from dim_jax.designer.blueprint import prompt
from dim_jax.designer.clients import RETRY_TEMPERATURE, Request, Response
from dim_jax.errors import InputError, check
from dim_jax.models.generate import GenerationSettings, generate
from dim_jax.models.precision import compute_dtype
from dim_jax.models.qwen import Qwen
from dim_jax.processing.chat import END_OF_TEXT, IM_END
from dim_jax.processing.inputs import EncoderInputs
from dim_jax.processing.pictures import read_picture
from dim_jax.processing.processor import Processor
from dim_jax.sampling import Sampler
from dim_jax.settings import PromptMode, read_prompt_mode, read_settings
from dim_jax.storage.paths import AnyPath
from dim_jax.weights.loading import load_module, require_qwen
from dim_jax.weights.opening import open_weights

# Each length of turn, and each multiple of PATCHES, compiles once.
LENGTHS = (128, 256, 384, 512, 768, 1024, 1536, 1792, 2048, 2560, 4096, 8192, 2**15)
PATCH_MULTIPLE = 1024
DONE, NOT_DONE = "done", "not done"  # answers to a source, a result and an instruction
PICTURE_TOKENS = 1280  # at most, what Qwen2.5-VL's model card advises; 1000 x 1000 pixels
REPETITION_PENALTY = 1.05  # of its generation_config.json


@dataclass(frozen=True)
class LocalDesigner:
    """Writes with `encoder`, whose arrays it shares, for example with a painter.

    `prompt_mode` is what the encoder was trained to answer: any prompt, with the picture in its own proportions; or, as the nano model, the
    bare instruction, with the picture as the painter sees it, `processor.resolution` squared.
    """

    encoder: Qwen
    processor: Processor
    prompt_mode: PromptMode = "prompt"
    max_tokens: int = 1024
    name: str = "local"

    @classmethod
    def from_sampler(cls, sampler: Sampler, resolution: int) -> "LocalDesigner":
        """The painter's own encoder, which sees pictures of this resolution if it was trained to write from what the painter sees."""
        require_qwen(sampler.dim.config.encoder, "A local designer")
        return cls(sampler.dim.encoder, replace(sampler.processor, resolution=resolution), sampler.prompt_mode)

    @classmethod
    def from_pretrained(
        cls, path: str | AnyPath, *, dtype: DTypeLike | None = None, tokenizer: str | AnyPath | None = None
    ) -> "LocalDesigner":
        """The encoder alone of a checkpoint in any format: a whole Draw-In-Mind, or a Qwen2.5-VL of any size.

        `dtype` and `tokenizer` as for `Sampler.from_pretrained`.

        Raises:
            InputError: the checkpoint is damaged, or has no encoder or no tokenizer.
        """
        weights = open_weights(path)
        if weights.config.encoder is None:
            raise InputError(f"{path} holds {', '.join(weights.config.parts)}, and no Qwen2.5-VL that could write. Name one that does.")
        require_qwen(weights.config.encoder, "A local designer")
        check(tokenizer is not None or weights.tokenizer, f"{path} has no tokenizer. Name one (--tokenizer).")
        chosen = compute_dtype(dtype)
        config = weights.config.encoder
        encoder = load_module(lambda rngs: Qwen(config, dtype=chosen, rngs=rngs), weights, chosen, "encoder")
        settings = read_settings(weights.settings)
        processor = Processor.from_pretrained(
            tokenizer or weights.tokenizer[0].parent, layout=weights.config.encoder.vision.layout, resolution=settings.resolution
        )
        return cls(encoder, processor, read_prompt_mode(weights.settings), name=f"local:{path}")

    async def complete(self, request: Request) -> Response:
        # Beside the event loop, which shows the progress meanwhile.
        return await asyncio.to_thread(self._complete, request)

    def _complete(self, request: Request) -> Response:
        pictures = [read_picture(io.BytesIO(picture.data), "the picture") for picture in request.pictures]
        text = request.text if self.prompt_mode == "prompt" else request.instruction
        (answer,) = self._write([pictures], [text], request.attempt)
        return answer

    async def close(self) -> None:
        """Nothing is open."""

    def write(self, pictures: Sequence[Image.Image], instructions: Sequence[str]) -> list[Response]:
        """The greedy answer to each picture and instruction.

        Raises:
            InputError: a picture or instruction cannot be read, or is too long for the encoder.
        """
        texts = [prompt(instruction) for instruction in instructions] if self.prompt_mode == "prompt" else list(instructions)
        return self._write([[picture] for picture in pictures], texts)

    def judge(self, sources: Sequence[Image.Image], results: Sequence[Image.Image], instructions: Sequence[str]) -> Float[np.ndarray, " b"]:
        """Whether each result is what was asked for: the log-probability of the answer `DONE`, less that of `NOT_DONE`.

        Raises:
            InputError: the encoder answers prompts, not bare instructions, or as in `write`.
        """
        check(
            self.prompt_mode == "instruction", f"{self.name} cannot judge. Name an encoder that was trained to (configs/nano_reflect.py)."
        )
        turns, processor = [*zip(sources, results, strict=True)], self._own_length()

        def log_probs(answer: str) -> Any:
            return _log_probs(self.encoder, *processor.with_answers(instructions, turns, [answer] * len(turns), lengths=LENGTHS))

        return np.asarray(log_probs(DONE) - log_probs(NOT_DONE))

    def _own_length(self) -> Processor:
        """The processor with the encoder's limit, not that of the painter's condition."""
        return replace(self.processor, condition_length=self.encoder.config.text.max_position_embeddings - self.max_tokens)

    def _write(self, pictures: list[list[Image.Image]], texts: list[str], attempt: int = 0) -> list[Response]:
        """The answer to each turn of pictures and text: greedy, but for a further attempt drawn at random."""
        processor, tokenizer, any_prompt = self._own_length(), self.processor.tokenizer, self.prompt_mode == "prompt"
        if any_prompt:
            processor = replace(processor, mode="native", max_pixels=PICTURE_TOKENS * processor.factor**2)
        sizes = [[processor.resize(picture).size for picture in turn] for turn in pictures]
        patches = max(sum(width * height for width, height in turn) for turn in sizes) // processor.layout.patch_size**2
        multiple = PATCH_MULTIPLE if any_prompt else 1  # as the painter sees them, all pictures have one size
        inputs = processor(texts, pictures, lengths=LENGTHS, patch_length=-(-patches // multiple) * multiple, generation_prompt=True)
        settings = GenerationSettings(
            max_new_tokens=self.max_tokens,
            temperature=RETRY_TEMPERATURE if attempt else 0.0,
            repetition_penalty=REPETITION_PENALTY if any_prompt else 1.0,
            stop_tokens=(tokenizer.ids[IM_END], tokenizer.ids[END_OF_TEXT]),
            pad_token=tokenizer.pad_id,
        )
        generated = generate(self.encoder, inputs, settings, [attempt] * len(texts))
        turns = np.asarray(inputs.mask).sum(1)
        return [
            self._response(tokens[:length].tolist(), int(turn))
            for tokens, length, turn in zip(np.asarray(generated.tokens), np.asarray(generated.lengths), turns, strict=True)
        ]

    def _response(self, tokens: list[int], tokens_in: int) -> Response:
        cut = f"the answer was cut off at {self.max_tokens} tokens" if len(tokens) == self.max_tokens else None
        return Response(self.processor.tokenizer.decode(tokens), cut, tokens_in, len(tokens))


@jax.jit
def _log_probs(encoder: Qwen, inputs: EncoderInputs, answer: Bool[Any, "b t"]) -> Float[Array, " b"]:
    """Of each row's answer, the tokens where `answer` is True."""
    log_probs = jax.nn.log_softmax(encoder.logits(encoder(inputs)[:, :-1]))
    tokens = jnp.take_along_axis(log_probs, jnp.asarray(inputs.input_ids)[:, 1:, None], -1)[..., 0]
    return jnp.sum(tokens * answer[:, 1:], -1)
