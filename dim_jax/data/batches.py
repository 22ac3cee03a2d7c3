"""The batches of a training step, one type for each objective; `data.readers` makes them."""

from dataclasses import dataclass, field
from typing import Any

import jax
from jaxtyping import Bool, Float, Num, UInt8

from dim_jax.processing.inputs import EncoderInputs


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PictureBatch:
    """Pictures for the autoencoder, in 8 bits, as they are sent to the accelerator."""

    pixels: UInt8[Any, "b h w 3"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AnswerBatch:
    """Turns with their answers; `answer` is True at the tokens to predict."""

    inputs: EncoderInputs
    answer: Bool[Any, "b t"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PaintBatch:
    """Turns with target and source pictures in 8 bits; `source` is None for text to image. No user turn has more than `condition_length`
    tokens, which conditions are padded to; like the shapes, it chooses the compiled program."""

    inputs: EncoderInputs
    target: UInt8[Any, "b h w 3"]
    source: UInt8[Any, "b h w 3"] | None
    condition_length: int = field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CachedBatch:
    """Outputs of the frozen encoder and autoencoder, as a cache stores them (`training.losses.Features`).

    Attributes:
        hidden: states of the user turns; integers are multiples of `scale`.
        scale: of each channel of a turn, for integers; else None.
        mask: True for states of tokens, False for padding.
        target: latents of the target picture.
        source: latents of the source picture; None for text to image.
    """

    hidden: Num[Any, "b t d"]
    scale: Float[Any, "b d"] | None
    mask: Bool[Any, "b t"]
    target: Float[Any, "b h w c"]
    source: Float[Any, "b h w c"] | None


Batch = PictureBatch | AnswerBatch | PaintBatch | CachedBatch
