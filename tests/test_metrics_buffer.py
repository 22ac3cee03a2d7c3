"""Means over the steps since the last line, also across a checkpoint between two; a step that is not finite is named."""

import json

import jax.numpy as jnp
import pytest

from dim_jax.errors import InputError
from dim_jax.training.metrics_buffer import MetricsBuffer


def metrics(loss: float, grad_norm: float = 1.0) -> dict:
    return {"loss": jnp.float32(loss), "grad_norm": jnp.float32(grad_norm)}


def test_means_since_last_call(tmp_path):
    recent = MetricsBuffer(tmp_path / "non_finite.json")
    for step, loss in enumerate((0.1, 0.2, 0.3), 1):
        recent.add(step, {0: "a"}, metrics(loss))
    assert recent.means() == {"loss": sum(float(jnp.float32(loss)) for loss in (0.1, 0.2, 0.3)) / 3, "grad_norm": 1.0}
    recent.add(4, {0: "a"}, metrics(0.5))
    assert recent.means()["loss"] == 0.5
    assert recent.flush() == []


def test_means_include_metrics_from_checkpoint(tmp_path):
    whole, first = (MetricsBuffer(tmp_path / "non_finite.json") for _ in range(2))
    for recent in (whole, first):
        recent.add(1, {0: "a"}, metrics(1 / 3, 1 / 7))
        recent.add(2, {0: "a"}, metrics(0.1, 1e-7))
    second = MetricsBuffer(tmp_path / "non_finite.json", json.loads(json.dumps(first.flush())))
    for recent in (whole, second):
        recent.add(3, {0: "a"}, metrics(0.7))
    assert whole.means() == second.means()


@pytest.mark.parametrize(("loss", "grad_norm"), [(float("nan"), 1.0), (1.0, float("inf"))])
def test_not_finite_step_is_reported(loss, grad_norm, tmp_path):
    """It is seen when the next step is under way, and it is not the next one that is blamed."""
    recent = MetricsBuffer(tmp_path / "non_finite.json")
    recent.add(1, {0: "a", 1: "b"}, metrics(0.5))
    recent.add(2, {1: "d", 0: "c"}, metrics(loss, grad_norm))
    with pytest.raises(InputError, match=rf"Step 2: the loss is {loss}, the gradient's norm {grad_norm}.*non_finite.json"):
        recent.add(3, {0: "e", 1: "f"}, metrics(0.5))
    found = json.loads((tmp_path / "non_finite.json").read_text())
    assert (found["step"], found["keys"]) == (2, ["c", "d"])
    assert {name: float(value) for name, value in found["metrics"].items()} == pytest.approx(
        {"loss": loss, "grad_norm": grad_norm}, nan_ok=True
    )


def test_not_finite_error_names_latest_step(tmp_path):
    recent = MetricsBuffer(tmp_path / "non_finite.json")
    recent.add(7, {0: "a"}, metrics(0.5))
    recent.flush()
    assert "Step 7: the state" in str(recent.not_finite("the state"))
    assert json.loads((tmp_path / "non_finite.json").read_text())["metrics"] == {"loss": 0.5, "grad_norm": 1.0}
