"""Any state of a training run as a checkpoint: averaged or as it was, in every format."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from dim_jax.pipeline import GeneratePipeline
from dim_jax.weights.convert import open_weights
from tests.painter_fixtures import dim, one_error
from tests.started import with_devices
from tests.test_train import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Six steps of the painter, with states after the second, the fourth and the last."""
    workdir = tmp_path_factory.mktemp("exporting") / "run"
    code, text = train("nano_t2i", workdir, 6, train__keep="3", optim__learning_rate="1e-2")
    assert code == 0, text
    return workdir


def tensors(folder) -> dict[str, np.ndarray]:
    return dict(open_weights(folder).stream())


def test_exported_ema_equals_final_model(run, tmp_path):
    """On a machine with more devices than the run had, too."""
    command = [sys.executable, "-m", "dim_jax.cli", "convert", str(run / "checkpoints/6"), str(tmp_path / "out"), "--to", "orbax"]
    done = subprocess.run(command, env=with_devices(8), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected, found = tensors(run / "model"), tensors(tmp_path / "out")
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[path], tensor) for path, tensor in expected.items())
    assert json.loads((tmp_path / "out/settings.json").read_text()) == json.loads((run / "model/settings.json").read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_export_state_to_published_formats(run, tmp_path):
    state = str(run / "checkpoints/4")
    for which in ("ema", "raw"):
        code, text = dim("convert", state, str(tmp_path / which), "--to", "dim", "--weights", which)
        assert code == 0, text
    ema, raw, last = tensors(tmp_path / "ema"), tensors(tmp_path / "raw"), tensors(run / "model")
    for path, tensor in last.items():
        learns = path.startswith(("sana.", "connector."))
        assert learns or np.array_equal(ema[path], tensor), path
        assert learns or np.array_equal(raw[path], tensor), path
    name = "connector.fc1.kernel"
    assert len({one[name].tobytes() for one in (ema, raw, last)}) == 3
    (painted,) = GeneratePipeline.from_pretrained(tmp_path / "raw")(["a red hat"])
    assert painted.image.size == (32, 32)
    code, text = dim("convert", state, str(tmp_path / "diffusers"), "--to", "diffusers")
    assert code == 0, text
    assert all(np.array_equal(tensor, ema[path]) for path, tensor in tensors(tmp_path / "diffusers").items())


def test_invalid_exports_are_refused(run, tmp_path):
    code, text = dim("convert", str(run / "model"), str(tmp_path / "x"), "--weights", "raw")
    assert code == 2
    assert "RUN/checkpoints/STEP" in text
    damaged = tmp_path / "run/checkpoints/4"
    shutil.copytree(run / "checkpoints/4", damaged)
    for file in damaged.rglob("*"):
        if file.is_file() and file.stat().st_size > 10_000:
            file.write_bytes(file.read_bytes()[:100])
    shutil.copytree(run / "tokenizer", tmp_path / "run/tokenizer")
    assert f"{damaged}: is damaged" in one_error(dim("convert", str(damaged), str(tmp_path / "y")))
    shutil.rmtree(tmp_path / "run/tokenizer")
    assert "run/tokenizer: the tokenizer of this run is missing" in one_error(dim("convert", str(damaged), str(tmp_path / "y")))
    assert not (tmp_path / "y").exists()
