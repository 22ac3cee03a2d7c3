"""Text generation with Qwen2.5-VL: a key-value cache, and one token a row at a time until every row has stopped."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from dim_jax.errors import check
from dim_jax.models.hf_config import HFConfig, Source
from dim_jax.models.qwen import Qwen
from dim_jax.processing.inputs import EncoderInputs


@dataclass(frozen=True)
class GenerationSettings:
    """How the next token is chosen. The penalty comes first, then the temperature, then the k best, then the smallest set of
    probability `top_p`.

    `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 leave all tokens in; `repetition_penalty` above 1 makes tokens of the row less
    likely. A row ends with one of `stop_tokens`, then `pad_token`s.

    Raises:
        InputError: a value is out of its range; the message names the key.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    stop_tokens: tuple[int, ...] = ()
    pad_token: int = 0

    def __post_init__(self):
        check(self.max_new_tokens > 0, f"max_new_tokens is {self.max_new_tokens}, must be positive.")
        check(self.temperature >= 0, f"temperature is {self.temperature}, must not be negative.")
        check(self.top_k >= 0, f"top_k is {self.top_k}, must not be negative.")
        check(0 < self.top_p <= 1, f"top_p is {self.top_p}, must be above 0 and at most 1.")
        check(self.repetition_penalty > 0, f"repetition_penalty is {self.repetition_penalty}, must be positive.")

    @classmethod
    def from_hf(cls, source: Source, **changes: Any) -> "GenerationSettings":
        """From transformers' generation_config.json (a path, or its values), with `changes` to single fields.

        Raises:
            InputError: the file cannot be read, or a value is wrong.
        """
        values = HFConfig(source, "generation_config.json")
        stops = values.values.get("eos_token_id")
        config = HFConfig({**values.values, "eos_token_id": [stops] if isinstance(stops, int) else stops}, values.name)
        stop_tokens = config.get("eos_token_id", tuple[int, ...], ())
        read = {
            "max_new_tokens": config.get("max_new_tokens", int, cls.max_new_tokens),
            "temperature": config.get("temperature", float, 1.0) if config.get("do_sample", bool, False) else 0.0,
            "top_k": config.get("top_k", int, 50),  # transformers' own default
            "top_p": config.get("top_p", float, 1.0),
            "repetition_penalty": config.get("repetition_penalty", float, 1.0),
            "stop_tokens": stop_tokens,
            "pad_token": config.get("pad_token_id", int, stop_tokens[0] if stop_tokens else 0),
        }
        return config.build(cls, **{**read, **changes})


class GeneratedTokens(NamedTuple):
    """New tokens of each row, with the stop token and then padding; `lengths` counts a row's tokens before its stop token."""

    tokens: Int[Array, "b new"]
    lengths: Int[Array, " b"]


def generate(model: Qwen, inputs: EncoderInputs, settings: GenerationSettings, seeds: Sequence[int] | None = None) -> GeneratedTokens:
    """Continue every row of `inputs` after its last token.

    A row's tokens depend on its own seed alone, never on the other rows or on padding. Compiled once for each shape and settings.

    Raises:
        ValueError: the number of seeds is not the number of rows.
    """
    rows = len(inputs.input_ids)
    seeds = [0] * rows if seeds is None else seeds
    if len(seeds) != rows:
        raise ValueError(f"{len(seeds)} seeds came with {rows} rows. Give one seed for each row.")
    return _generate(model, inputs, np.asarray(seeds, np.uint32), settings)


@partial(jax.jit, static_argnames="settings")
def _generate(model: Qwen, inputs: EncoderInputs, seeds: Array, settings: GenerationSettings) -> GeneratedTokens:
    inputs = jax.tree.map(jnp.asarray, inputs)
    keys, sizes, rows = jax.vmap(jax.random.key)(seeds), inputs.mask.sum(1, dtype=jnp.int32), jnp.arange(len(seeds))
    # Positions continue after the largest one: pictures have fewer positions than tokens.
    positions = jnp.where(inputs.mask, inputs.position_ids, -1).max((0, 2)) + 1
    hidden, cache = model.model.prefill(model.embed(inputs), inputs.position_ids, settings.max_new_tokens)
    used = jnp.zeros((len(seeds), model.config.text.vocab_size), bool).at[rows[:, None], inputs.input_ids].max(inputs.mask)
    stops = jnp.array(settings.stop_tokens, jnp.int32)

    def write(state):
        step, hidden, cache, used, tokens, finished = state
        token = sample_tokens(model.logits(hidden), used, jax.vmap(jax.random.fold_in, (0, None))(keys, step), settings)
        token = jnp.where(finished, settings.pad_token, token)
        tokens, used, finished = tokens.at[:, step].set(token), used.at[rows, token].set(True), finished | jnp.isin(token, stops)
        position = jnp.broadcast_to((positions + step)[None, :, None], (3, len(seeds), 1))
        hidden, cache = model.model.decode(model.model.embed(token[:, None]), position, sizes + step, cache)
        return step + 1, hidden[:, 0], cache, used, tokens, finished

    empty = jnp.full((len(seeds), settings.max_new_tokens), settings.pad_token, jnp.int32)
    start = (jnp.int32(0), hidden[rows, sizes - 1], cache, used, empty, jnp.zeros(len(seeds), bool))
    end = jax.lax.while_loop(lambda state: (state[0] < settings.max_new_tokens) & ~state[-1].all(), write, start)
    tokens = end[4]
    stopped = jnp.isin(tokens, stops)
    return GeneratedTokens(tokens, jnp.where(stopped.any(1), stopped.argmax(1), tokens.shape[1]).astype(jnp.int32))


def sample_tokens(
    logits: Float[Array, "b vocab"], used: Bool[Array, "b vocab"], keys: Key[Array, " b"], settings: GenerationSettings
) -> Int[Array, " b"]:
    """The next token of each row: the best one, or one drawn with the row's own key.

    Sources: repetition penalty of CTRL (arXiv 1909.05858), top-p of Holtzman et al. (arXiv 1904.09751).
    """
    penalty = settings.repetition_penalty
    scores = jnp.where(used, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)
    if settings.temperature == 0:
        return scores.argmax(-1).astype(jnp.int32)
    best, tokens = jax.lax.top_k(scores / settings.temperature, min(settings.top_k or scores.shape[1], scores.shape[1]))
    probability = jax.nn.softmax(best)
    better = jnp.cumsum(probability, -1) - probability  # sum of the tokens before each one; 0 for the first
    drawn = jax.vmap(jax.random.categorical)(keys, jnp.where(better < settings.top_p, best, -jnp.inf))
    return jnp.take_along_axis(tokens, drawn[:, None], 1)[:, 0].astype(jnp.int32)
