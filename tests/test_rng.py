"""No two purposes draw from the same key: parameters of each part, steps, the order of the data, samples."""

from itertools import product

import jax
import numpy as np
import pytest
from flax import nnx

from dim_jax.data import plan
from dim_jax.rng import NULL_ROWS, key_seed, stream
from dim_jax.weights.model_config import ModelConfig

PARTS = ("encoder", "connector", "sana", "autoencoder")
STEPS = 60


def test_no_key_is_used_twice():
    """As training draws them: parameters by a counter within each part, steps by their number."""
    keys = {}
    for seed in (0, 1):
        for name in (*(f"params/{part}" for part in PARTS), NULL_ROWS):
            rngs = nnx.Rngs(key_seed(seed, name))
            keys |= {(seed, name, n): rngs.params() for n in range(STEPS)} | {(seed, name): jax.random.key(key_seed(seed, name))}
        first = jax.random.key(key_seed(seed, "steps"))
        keys |= {(seed, "steps", n): key for n, key in enumerate(jax.vmap(jax.random.fold_in, (None, 0))(first, np.arange(STEPS)))}
    data = [tuple(np.asarray(jax.random.key_data(key)).tolist()) for key in keys.values()]
    assert len(set(data)) == len(data)


def test_no_numbers_of_numpy_are_drawn_twice():
    """Of a step and place, and of an order: they fell together where one had as many zeros fewer (SeedSequence fills up with zeros)."""
    drawn = {("sample", step, place): stream(0, "samples", step, place) for step in range(6) for place in range(6)}
    found = {name: int(np.random.PCG64(sequence).random_raw()) for name, sequence in drawn.items()}
    for purpose, count in ((plan._ENTRIES, 3), (plan._BATCHES, 2), (plan._SUBSTITUTE, 3)):
        for rest in product(range(4), repeat=count):
            found["order", purpose, *rest] = int(plan._bit_generator(0, purpose, *rest).random_raw())
    assert len(set(found.values())) == len(found)


def test_parts_begin_with_numbers_of_their_own(monkeypatch):
    """They shared their first keys."""
    monkeypatch.setattr(ModelConfig, "modules", lambda self: dict.fromkeys(PARTS, lambda rngs: nnx.Linear(3, 4, rngs=rngs)))
    first = [ModelConfig().init(part, 0)[f"{part}.kernel"] for part in PARTS]
    assert len({np.asarray(kernel).tobytes() for kernel in first}) == len(PARTS)


@pytest.mark.parametrize("seed", [-1, 2**40, 2**64 + 3])
def test_any_integer_is_a_seed(seed):
    jax.random.key(key_seed(seed, "steps"))
    np.random.default_rng(stream(seed, "samples", 1, 2))
