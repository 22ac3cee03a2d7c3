"""Qwen2.5-VL (arXiv 2502.13923): the encoder of Draw-In-Mind, and with its head a language model that writes blueprints."""

from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dim_jax.errors import check
from dim_jax.models.hf_config import HFConfig, Source
from dim_jax.models.precision import exact_products
from dim_jax.models.qwen_layers import DTYPES, at_picture_tokens
from dim_jax.models.qwen_text import QwenText, TextConfig
from dim_jax.models.qwen_vision import CHANNELS, QwenVision, VisionConfig
from dim_jax.processing.inputs import EncoderInputs


@dataclass(frozen=True)
class QwenConfig:
    """Sizes and special tokens of a Qwen2.5-VL. `dtype` is that of the published tensors, not of computation.

    Raises:
        InputError: the sizes contradict each other; the message names the key.
    """

    vision: VisionConfig
    text: TextConfig
    tie_word_embeddings: bool = False
    image_token_id: int = 151655
    video_token_id: int = 151656
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653
    bos_token_id: int | None = 151643
    eos_token_id: int | None = 151645
    dtype: str = "float32"

    def __post_init__(self):
        out, d = self.vision.out_hidden_size, self.text.hidden_size
        check(out == d, f"vision_config: out_hidden_size {out} must be the hidden_size {d} of the text decoder.")
        for key in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
            token, size = getattr(self, key), self.text.vocab_size
            check(0 <= token < size, f"{key} {token} is not in the vocabulary; vocab_size is {size}.")
        check(self.dtype in DTYPES, f"dtype is {self.dtype!r}, but only {', '.join(DTYPES)} are supported.")

    @classmethod
    def qwen_3b(cls) -> "QwenConfig":
        """Qwen2.5-VL-3B-Instruct, the encoder of the published Draw-In-Mind models."""
        text = TextConfig(151936, 2048, 11008, 36, 16, 2, 1e-6, max_position_embeddings=128000)
        return cls(VisionConfig.published(2048), text, tie_word_embeddings=True, dtype="bfloat16")

    @classmethod
    def qwen_7b(cls) -> "QwenConfig":
        """Qwen2.5-VL-7B-Instruct."""
        text = TextConfig(152064, 3584, 18944, 28, 28, 4, 1e-6, max_position_embeddings=128000)
        return cls(VisionConfig.published(3584), text, dtype="bfloat16")

    @classmethod
    def tiny(cls) -> "QwenConfig":
        """A model of 0.3 M parameters for tests and the demo: every part is there, two layers of each kind."""
        vision = VisionConfig(32, 48, 2, 64, depth=4, fullatt_block_indexes=(1, 3), tokens_per_second=2)
        text = TextConfig(300, 64, 96, 2, 4, 2, 1e-6, mrope_section=(2, 3, 3), max_position_embeddings=4096)
        return cls(
            vision,
            text,
            tie_word_embeddings=True,
            vision_start_token_id=288,
            vision_end_token_id=289,
            image_token_id=290,
            video_token_id=291,
            bos_token_id=None,
            eos_token_id=None,
        )

    @classmethod
    def nano(cls) -> "QwenConfig":
        """3.2 M parameters for pictures of 64 px, with 16 x 16 pixels a picture token; trained on emoji (docs/nano.md)."""
        vision = VisionConfig(128, 256, 4, 256, depth=3, fullatt_block_indexes=(2,), patch_size=8, window_size=32, tokens_per_second=2)
        text = TextConfig(2048, 256, 512, 3, 4, 2, 1e-6, mrope_section=(8, 12, 12), max_position_embeddings=4096)
        return cls(
            vision,
            text,
            tie_word_embeddings=True,
            vision_start_token_id=2044,
            vision_end_token_id=2045,
            image_token_id=2046,
            video_token_id=2047,
            bos_token_id=None,
            eos_token_id=None,
        )

    @classmethod
    def from_hf(cls, source: Source) -> "QwenConfig":
        """From transformers' config.json (a path, or its values): the flat form (4.51) and the nested one (4.52 and later).

        Raises:
            InputError: the file cannot be read, a key is missing or wrong, or the model is of a kind that is not supported.
        """
        values = HFConfig(source, "config.json")
        values.get("model_type", str)
        values.only("model_type", "qwen2_5_vl")
        check("quantization_config" not in values, f"{values.name}: quantization_config: quantised weights are not supported.")
        text = values.child("text_config") if "text_config" in values else values
        either = HFConfig({**text.values, **values.values}, values.name)
        # transformers 4.52 to 4.57 ties the head inside text_config; either level counts, as in transformers 5.
        tied = any(level.get("tie_word_embeddings", bool, False) for level in (values, text))
        return either.build(
            cls,
            vision=VisionConfig.from_hf(values.child("vision_config")),
            text=TextConfig.from_hf(text),
            tie_word_embeddings=tied,
            bos_token_id=either.get("bos_token_id", int, None),
            eos_token_id=either.get("eos_token_id", int, None),
            dtype=either.get("dtype", str, either.get("torch_dtype", str, "float32")),
        )

    def to_hf(self) -> dict[str, Any]:
        """The values of a config.json in the flat form, which every transformers from 4.49 on reads; `from_hf` reads it back."""
        text = asdict(self.text)
        mrope_section = list(text.pop("mrope_section"))
        vision = {**asdict(self.vision), "fullatt_block_indexes": list(self.vision.fullatt_block_indexes)}
        top_level = {key: value for key, value in asdict(self).items() if key not in ("vision", "text", "dtype")}
        return {
            "architectures": ["Qwen2_5_VLForConditionalGeneration"],
            "model_type": "qwen2_5_vl",
            **text,
            **top_level,
            "hidden_act": "silu",
            "rope_scaling": {"type": "mrope", "mrope_section": mrope_section},
            "torch_dtype": self.dtype,
            "use_sliding_window": False,
            "vision_config": {**vision, "hidden_act": "silu", "in_channels": CHANNELS},
        }

    @property
    def hidden_size(self) -> int:
        """Width of the last hidden state."""
        return self.text.hidden_size

    @property
    def head_counts(self) -> dict[str, int]:
        """Logical axis of the parameters -> how many heads it holds."""
        return self.text.head_counts | {"vision_heads": self.vision.num_heads}


class Qwen(nnx.Module):
    """Vision tower, decoder and, where it is not tied to the embedding, the head; attributes are named as published."""

    def __init__(self, config: QwenConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.config, self.dtype = config, dtype
        self.visual = QwenVision(config.vision, dtype=dtype, rngs=rngs)
        self.model = QwenText(config.text, dtype=dtype, rngs=rngs)
        if not config.tie_word_embeddings:
            self.lm_head = nnx.Linear(config.text.hidden_size, config.text.vocab_size, use_bias=False, rngs=rngs)

    def __call__(self, inputs: EncoderInputs) -> Float[Array, "b t d"]:
        """The last hidden state of every token, after the final norm: what the connector reads. States of padding mean nothing."""
        return self.model(self.embed(inputs), jnp.asarray(inputs.position_ids))

    def hidden_states(self, inputs: EncoderInputs) -> Float[Array, "states b t d"]:
        """The embedding, then every decoder layer's output, the last one after the final norm."""
        return self.model.hidden_states(self.embed(inputs), jnp.asarray(inputs.position_ids))

    def embed(self, inputs: EncoderInputs) -> Float[Array, "b t d"]:
        """Token embeddings, with the features of pictures at their tokens."""
        inputs = jax.tree.map(jnp.asarray, inputs)
        x = self.model.embed(inputs.input_ids)
        if inputs.patches.shape[0] == 0:
            return x
        return at_picture_tokens(self.visual(inputs).reshape(-1, x.shape[-1]), inputs.picture_tokens, x)

    @exact_products
    def logits(self, hidden: Float[Array, "*b d"]) -> Float[Array, "*b vocab"]:
        """Scores of the next token, in float32, from hidden states after the final norm."""
        table = self.model.embed_tokens.embedding[...].T if self.config.tie_word_embeddings else self.lm_head.kernel[...]
        return jnp.matmul(hidden, table.astype(self.dtype), preferred_element_type=jnp.float32)
