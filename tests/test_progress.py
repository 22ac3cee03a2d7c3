"""What a run says while it goes on."""

import io
import time

import jax
import pytest
from rich.console import Console

from dim_jax.models.chips import peak_flops
from dim_jax.training.progress import ProgressBar, Speed

MEANS = {"loss": 0.51234, "learning_rate": 1e-4, "grad_norm": 1.5}
SPEED = {"steps_per_second": 2.0, "samples_per_second": 64.0, "waiting_for_data": 0.25}
WORDS = "loss 0.5123, lr 1.00e-04, gradient 1.5, 64.0 samples/s, 25% waiting for data, 0:00:30 left"


def shown(*, terminal: bool, **more: float) -> str:
    text = io.StringIO()
    with ProgressBar(Console(file=text, force_terminal=terminal, width=200), total=100, start_step=20) as progress:
        progress.update(40, MEANS, SPEED | more)
    return text.getvalue()


def test_progress_to_file_is_lines():
    assert shown(terminal=False) == f"step 40/100: {WORDS}\n"


def test_utilisation_is_shown_where_it_is_known():
    assert "64.0 samples/s, 41.2% MFU, 25% waiting for data" in shown(terminal=False, mfu=0.4123)


def test_progress_on_terminal_is_a_bar():
    text = shown(terminal=True)
    assert WORDS in text
    assert "40/100" in text
    assert "━" in text


def test_speed_is_since_the_last_reading():
    speed = Speed(32)
    for _ in range(3):
        with speed.waiting():
            time.sleep(0.1)
    time.sleep(0.3)
    found = speed.rates()
    assert found["samples_per_second"] == 32 * found["steps_per_second"]
    assert found["steps_per_second"] <= 3 / 0.6
    assert 0 < found["waiting_for_data"] < 1
    with speed.waiting():
        pass
    time.sleep(0.3)
    assert speed.rates()["waiting_for_data"] < found["waiting_for_data"]


def test_utilisation_is_of_the_peak_and_absent_where_that_is_unknown():
    speed = Speed(32, peak=1e6)
    for _ in range(2):
        with speed.waiting():
            speed.add_flops(40_000)
    time.sleep(0.2)
    found = speed.rates()
    assert found["mfu"] == pytest.approx(40_000 * found["steps_per_second"] / 1e6)
    assert 0 < found["mfu"] <= 0.4
    assert speed.rates()["mfu"] == 0
    assert "mfu" not in Speed(32).rates()
    assert peak_flops(jax.devices("cpu")[0].device_kind) is None
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
