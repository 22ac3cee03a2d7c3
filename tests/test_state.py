"""What the gradients of steps make of a run's parameters, averages and the optimizer's state."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dim_jax.config import Config, read_config
from dim_jax.models.dc_ae_config import DCAEConfig
from dim_jax.models.qwen import QwenConfig
from dim_jax.models.sana_config import SanaConfig
from dim_jax.sharding import Sharding
from dim_jax.training.optim import ema_decay, make_optimizer
from dim_jax.training.state import State, abstract_state, init_state, next_state
from dim_jax.weights.model_config import ModelConfig
from tests.test_train import CONFIGS, SMALL

STEPS = 7
MODEL = ModelConfig(QwenConfig.tiny(), SanaConfig.tiny(), DCAEConfig.tiny())


def config(accumulate: int, name: str = "adamw") -> Config:
    changes = {"optim.accumulate": str(accumulate), "optim.name": name, "optim.warmup_steps": "0", "train.steps": str(STEPS)}
    return read_config(CONFIGS / "nano_t2i.py", SMALL | changes)


def first_state(config: Config) -> State:
    abstract = abstract_state(config, MODEL, Sharding.open(config, MODEL, jax.devices()[:1]))
    return init_state(config, random_like(abstract.params, 0), abstract)


def random_like(params: Any, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return {path: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32) for path, leaf in sorted(params.items())}


def assert_near(ours: Any, theirs: Any) -> None:
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), ours, theirs)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_accumulated_gradients_update_as_their_mean(name):
    chosen = config(3, name)
    state, step = first_state(chosen), jax.jit(partial(next_state, chosen))
    reference = optax.MultiSteps(make_optimizer(chosen)[0], 3)
    params, ema, opt = state.params, state.ema, state.opt
    for number in range(STEPS):
        gradients, before = random_like(params, 1 + number), state
        state = step(state, gradients)
        changes, opt = jax.jit(reference.update)(gradients, opt, params)
        params = optax.apply_updates(params, changes)
        assert (int(state.step), int(state.opt.mini_step), int(state.opt.gradient_step)) == (
            number + 1,
            (number + 1) % 3,
            (number + 1) // 3,
        )
        if (number + 1) % 3:
            assert jax.tree.all(jax.tree.map(jnp.array_equal, (state.params, state.ema), (before.params, before.ema)))
        else:
            assert float(jnp.abs(state.params["sana.t_block.kernel"] - before.params["sana.t_block.kernel"]).max()) > 1e-4
            ema = optax.incremental_update(params, ema, 1 - ema_decay(chosen, jnp.int32(number)))
        assert_near((state.params, state.ema, state.opt.inner_opt_state), (params, ema, opt.inner_opt_state))


def test_each_step_updates_without_accumulation():
    chosen = config(1)
    state = first_state(chosen)
    after = jax.jit(partial(next_state, chosen))(state, random_like(state.params, 1))
    assert int(after.step) == 1
    assert not any(jnp.array_equal(after.params[path], state.params[path]) for path in state.params)
    assert_near(after.ema, optax.incremental_update(after.params, state.ema, 1 - ema_decay(chosen, state.step)))
