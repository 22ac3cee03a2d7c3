"""From the encoder's hidden states to condition tokens: choose the user turn, pad to a length, project.

The connector of each family has `read(encoder, inputs)`, the encoder's states of all tokens; a call, which projects those of the user
turn; and `null()`, condition tokens of no prompt, or None where SANA has learned them itself or an empty prompt takes their place.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from dim_jax.models.precision import exact_products
from dim_jax.processing.inputs import EncoderInputs


class NoConnector(nnx.Module):
    """The encoder's states as they are: SANA projects them itself. An empty prompt takes the place of none."""

    def read(self, encoder: Any, inputs: EncoderInputs) -> Float[Array, "b t d"]:
        return encoder(inputs)

    def __call__(self, hidden: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        return hidden

    def null(self) -> None:
        return None


class Connector(NoConnector):
    """Condition tokens from the encoder's last hidden state: Linear, exact GELU, Linear. SANA has learned those of no prompt.

    Source: Draw-In-Mind (arXiv 2509.01986), `projector` in its checkpoint.
    """

    def __init__(self, d_encoder: int, d: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.fc1 = nnx.Linear(d_encoder, d, dtype=dtype, rngs=rngs)
        self.fc2 = nnx.Linear(d, d, dtype=dtype, rngs=rngs)

    @exact_products
    def __call__(self, hidden: Float[Array, "b t d_encoder"]) -> Float[Array, "b t d"]:
        return self.fc2(jax.nn.gelu(self.fc1(hidden), approximate=False))


def select_user_turn(
    hidden: Float[Array, "b t d"], user_turn: Bool[Array, "b t"], length: int
) -> tuple[Float[Array, "b length d"], Bool[Array, "b length"]]:
    """The states of the user turn moved to the front, padded with zeros on the right to `length`, and the mask of the real ones.

    A longer turn keeps its last `length` tokens and loses the first, which are the picture's. `Processor` decides whether that is allowed,
    since a compiled function cannot raise.
    """
    count = user_turn.sum(1, keepdims=True)
    rank = jnp.cumsum(user_turn, 1) - 1
    selected = user_turn & (rank >= count - length)
    order = jnp.argsort(~selected, axis=1, stable=True)[:, :length]
    states = jnp.take_along_axis(hidden, order[..., None], 1)
    states = jnp.pad(states, ((0, 0), (0, length - states.shape[1]), (0, 0)))
    mask = jnp.arange(length) < jnp.minimum(count, length)
    return jnp.where(mask[..., None], states, 0), mask
