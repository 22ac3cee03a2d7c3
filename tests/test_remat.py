"""What `model.remat = "auto"` chooses."""

from collections.abc import Iterator
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from dim_jax.models import layers
from dim_jax.training import remat
from dim_jax.training.remat import AUTO, FASTEST_FIRST, FittingStep, remat_choices
from tests.abstract_meshes import GPU, on

WIDTHS = dict(zip(FASTEST_FIRST, (600, 400, 200, 100), strict=True))
IN_A_LOOP = remat_choices(AUTO)


def make_step(name: str):
    """A step whose program needs more memory the more it "saves"."""

    @jax.jit
    def step(state, frozen, batch):
        saved = jnp.sort(jnp.sin(jnp.arange(WIDTHS[name] * batch.shape[0]) + state))  # which has to be whole
        return state + saved[0] * frozen, {"loss": jnp.float32(WIDTHS[name])}

    return step


def memory_of(name: str, *arguments: jax.Array) -> int:
    memory = make_step(name).lower(*arguments).compile().memory_analysis()
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """The memory of the only device, which a test may change."""
    stats: dict[str, int] = {}
    monkeypatch.setattr(remat.jax, "local_devices", lambda: [SimpleNamespace(memory_stats=lambda: stats)])
    return stats


def test_each_shape_of_batch_gets_the_fastest_that_fits(devices):
    said: list[str] = []
    zero, small, large = jnp.zeros(()), jnp.zeros(20), jnp.zeros(100)
    devices["bytes_limit"] = int(memory_of("narrow", zero, zero, large) / remat.USABLE) + 1
    step = FittingStep(make_step, IN_A_LOOP, said.append)
    chosen = [float(step(zero, zero, batch)[1]["loss"]) for batch in (small, large, small, large)]
    assert chosen == [WIDTHS["products"], WIDTHS["narrow"]] * 2
    assert [line.split(":")[0] for line in said] == ['model.remat "products"', 'model.remat "narrow"'], "once a shape"


def test_the_least_is_taken_where_nothing_fits_and_the_first_where_memory_is_not_known(devices):
    zero, batch = jnp.zeros(()), jnp.zeros(60)
    assert FittingStep(make_step, IN_A_LOOP, print)(zero, zero, batch)[1]["loss"] == WIDTHS["products"]
    devices["bytes_limit"] = 1
    assert FittingStep(make_step, IN_A_LOOP, print)(zero, zero, batch)[1]["loss"] == WIDTHS["all"]


@pytest.mark.parametrize(("depth", "devices", "choices"), [(20, 1, FASTEST_FIRST), (20, 2, FASTEST_FIRST[1:]), (36, 1, FASTEST_FIRST[1:])])
def test_everything_is_saved_where_blocks_run_without_a_loop(depth, devices, choices):
    """On one GPU, and not of more layers than SANA has."""
    with on(1, 1, devices, 1, device=GPU):
        assert remat_choices(AUTO, unrolled=layers.unrolls(depth)) == choices
