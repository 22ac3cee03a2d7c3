"""The arrays of a training step: turns, pictures, or what a cache has of them, as each objective takes them (made by `data.readers`)."""

from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import Bool, Float, Num, UInt8

from dim_jax.data.inputs import EncoderInputs


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


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CachedBatch:
    """What the frozen parts of a painter made of turns and pictures, as a cache stores it (`training.losses.Features`).

    Attributes:
        hidden: states of the user turns; whole numbers are multiples of `scale`.
        scale: of each channel of a turn.
        mask: which of the states are real.
        target: latents of what to paint. So is `source`.
    """

    hidden: Num[Any, "b t d"]
    scale: Float[Any, "b d"] | None
    mask: Bool[Any, "b t"]
    target: Float[Any, "b h w c"]
    source: Float[Any, "b h w c"] | None


Batch = PictureBatch | AnswerBatch | PaintBatch | CachedBatch
