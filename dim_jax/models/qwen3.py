"""Qwen3-VL (arXiv 2511.21631), without its head: the encoder of VIBE."""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from dim_jax.errors import check
from dim_jax.models.hf_config import HFConfig, Source
from dim_jax.models.qwen3_vision import Qwen3Vision, Qwen3VisionConfig
from dim_jax.models.qwen_layers import DTYPES, at_picture_tokens
from dim_jax.models.qwen_text import QwenText, TextConfig
from dim_jax.processing.inputs import EncoderInputs


@dataclass(frozen=True)
class Qwen3TextConfig(TextConfig):
    """Sizes of the decoder, which normalises queries and keys, has no biases, and interleaves the three axes of its rotary positions."""

    attention_bias: ClassVar[bool] = False
    qk_norm: ClassVar[bool] = True

    @classmethod
    def from_hf(cls, values: HFConfig) -> TextConfig:
        """From the `text_config` of a config.json.

        Raises:
            InputError: a key is missing, wrong or has a value that no supported model has.
        """
        heads = values.get("num_attention_heads", int)
        values.only("attention_bias", False)
        values.only("head_dim", values.get("hidden_size", int) // heads)
        rope = values.child("rope_parameters" if "rope_parameters" in values else "rope_scaling")
        rope.only("mrope_interleaved", True)
        return super().from_hf(values)

    @property
    def rotary_axes(self) -> Int[np.ndarray, " half"]:
        """Which position rotates each pair of a head: time, row and column by turns, then time."""
        axes = np.zeros(self.head_dim // 2, int)
        for axis in (1, 2):
            axes[axis : 3 * self.mrope_section[axis] : 3] = axis
        return axes


@dataclass(frozen=True)
class Qwen3Config:
    """Sizes and special tokens of a Qwen3-VL whose head is its embedding. `dtype` is that of the published tensors.

    Raises:
        InputError: the sizes contradict each other; the message names the key.
    """

    vision: Qwen3VisionConfig
    text: TextConfig
    image_token_id: int = 151655
    video_token_id: int = 151656
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653
    dtype: str = "float32"

    def __post_init__(self):
        out, d, count = self.vision.out_hidden_size, self.text.hidden_size, len(self.vision.deepstack_visual_indexes)
        check(out == d, f"vision_config: out_hidden_size {out} must be the hidden_size {d} of the text decoder.")
        check(
            1 <= count <= self.text.num_hidden_layers,
            f"vision_config: {count} deepstack_visual_indexes for {self.text.num_hidden_layers} layers of the decoder; give at least one.",
        )
        check(self.dtype in DTYPES, f"dtype is {self.dtype!r}, but only {', '.join(DTYPES)} are supported.")

    @classmethod
    def qwen3_2b(cls) -> "Qwen3Config":
        """Qwen3-VL-2B-Instruct, the encoder of the published VIBE."""
        text = Qwen3TextConfig(151936, 2048, 6144, 28, 16, 8, 1e-6, 5000000.0, (24, 20, 20), 262144)
        return cls(Qwen3VisionConfig(24, 1024, 4096, 16, 2048), text, dtype="bfloat16")

    @classmethod
    def from_hf(cls, source: Source) -> "Qwen3Config":
        """From transformers' config.json (a path, or its values).

        Raises:
            InputError: the file cannot be read, a key is missing or wrong, or the model is of a kind that is not supported.
        """
        values = HFConfig(source, "config.json")
        values.only("model_type", "qwen3_vl")
        values.only("tie_word_embeddings", True)
        text = values.child("text_config")
        dtypes = [level.get(key, str, "") for level in (values, text) for key in ("dtype", "torch_dtype")]
        return values.build(
            cls,
            vision=Qwen3VisionConfig.from_hf(values.child("vision_config")),
            text=Qwen3TextConfig.from_hf(text),
            dtype=next(filter(None, dtypes), "float32"),
        )

    def to_hf(self) -> dict[str, Any]:
        """The values of a config.json that transformers' `Qwen3VLForConditionalGeneration` loads; `from_hf` reads it back."""
        text, vision = asdict(self.text), asdict(self.vision)
        rope = {"rope_type": "default", "mrope_interleaved": True, "mrope_section": list(text.pop("mrope_section"))}
        rope["rope_theta"] = text.pop("rope_theta")
        text |= {"model_type": "qwen3_vl_text", "head_dim": self.text.head_dim, "hidden_act": "silu", "attention_bias": False}
        vision |= {"deepstack_visual_indexes": list(self.vision.deepstack_visual_indexes), "in_channels": 3}
        return {
            "architectures": ["Qwen3VLForConditionalGeneration"],
            "model_type": "qwen3_vl",
            **{key: value for key, value in asdict(self).items() if key.endswith("_token_id")},
            "tie_word_embeddings": True,
            "torch_dtype": self.dtype,
            "text_config": {**text, "rope_parameters": rope},
            "vision_config": {**vision, "model_type": "qwen3_vl_vision", "hidden_act": "gelu_pytorch_tanh"},
        }

    @property
    def hidden_size(self) -> int:
        """Width of the last hidden state."""
        return self.text.hidden_size

    @property
    def head_counts(self) -> dict[str, int]:
        """Logical axis of the parameters -> how many heads it holds."""
        return self.text.head_counts | {"vision_heads": self.vision.num_heads}


class Qwen3(nnx.Module):
    """Vision tower and decoder; attributes are named as published."""

    def __init__(self, config: Qwen3Config, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.config, self.dtype = config, dtype
        self.visual = Qwen3Vision(config.vision, dtype=dtype, rngs=rngs)
        self.model = QwenText(config.text, dtype=dtype, rngs=rngs)

    def __call__(self, inputs: EncoderInputs, queries: Float[Array, "q d"] | None = None) -> Float[Array, "b t d"]:
        """The last hidden state of every token, after the final norm. States of padding mean nothing.

        `queries` are learned embeddings that stand in place of the q tokens of the user turn (`inputs.user_turn`).
        """
        inputs = jax.tree.map(jnp.asarray, inputs)
        x = self.model.embed(inputs.input_ids)
        if queries is not None:
            rank = jnp.maximum(jnp.cumsum(inputs.user_turn, 1) - 1, 0)
            x = jnp.where(inputs.user_turn[..., None], queries.astype(x.dtype)[rank], x)
        if inputs.patches.shape[0] == 0:
            return self.model(x, inputs.position_ids)
        features, tokens = self.visual(inputs), inputs.picture_tokens
        x = at_picture_tokens(features.last.reshape(-1, x.shape[-1]), tokens, x)
        deepstack = features.deepstack.reshape(len(features.deepstack), -1, x.shape[-1])
        return self.model(x, inputs.position_ids, at_picture_tokens(deepstack, tokens, 0.0))
