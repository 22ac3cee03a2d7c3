"""A trace has the steps that were asked for, also of a run that ends among them."""

import gzip
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from dim_jax.errors import InputError
from dim_jax.training.profiling import Profile


@jax.jit
def double(x: jax.Array) -> jax.Array:
    return x * 2


def traced(folder: Path) -> set[str]:
    """The numbers of the steps in the one trace there."""
    (path,) = folder.glob("plugins/profile/*/*.trace.json.gz")
    with gzip.open(path) as file:
        found = json.load(file)["traceEvents"]
    return {event["args"]["step_num"] for event in found if event.get("name") == "train"}


def run(folder: Path, steps: tuple[int, int] | None, *, done: int = 0, stop: int = 5) -> None:
    x = jnp.ones(4)
    with Profile(folder, steps, start_step=done, total=5) as profile:
        for step in range(done + 1, stop + 1):
            with profile.step(step, jax.effects_barrier):
                x = double(x)


def test_profile_covers_requested_steps(tmp_path):
    run(tmp_path / "whole", (2, 4))
    assert traced(tmp_path / "whole") == {"2", "3", "4"}
    run(tmp_path / "stopped", (2, 4), stop=3)
    assert traced(tmp_path / "stopped") == {"2", "3"}
    run(tmp_path / "none", None)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(("steps", "done"), [((0, 2), 0), ((3, 2), 0), ((2, 6), 0), ((2, 4), 3)])
def test_profile_steps_beyond_the_run_are_refused(steps, done, tmp_path):
    with pytest.raises(InputError, match=f"--profile {steps[0]}:{steps[1]}: .* from {done + 1} to 5"):
        run(tmp_path, steps, done=done)
