"""`dim doctor`: a machine that works, and what it says of one that does not."""

import jax
import pytest
from typer.testing import CliRunner

from dim_jax import doctor
from dim_jax.cli.main import app


def diagnosed(*options: str) -> tuple[int, str]:
    """`dim doctor` with some options: its exit code, and what it wrote."""
    result = CliRunner().invoke(app, ["doctor", *options])
    return result.exit_code, result.stdout


def wrong(text: str) -> list[str]:
    """The names of the checks that failed."""
    return [line.split()[1].rstrip(":") for line in text.splitlines() if line.startswith("WRONG")]


def test_this_machine_is_healthy():
    code, text = diagnosed()
    assert code == 0, text
    assert wrong(text) == []
    assert "1 x cpu" in text
    assert "12,242,979 parameters, edits and paints" in text


def test_a_checkpoint_that_is_not_there(tmp_path):
    code, text = diagnosed("--checkpoint", str(tmp_path / "none"))
    assert (code, wrong(text)) == (1, ["checkpoint"])
    assert "there is no such file or folder" in text


def test_products_that_are_not_exact(monkeypatch):
    monkeypatch.setattr(doctor, "exact_products", lambda product: lambda a, b: product(a.astype("bfloat16"), b.astype("bfloat16")))
    code, text = diagnosed()
    assert (code, wrong(text)) == (1, ["float32"])
    assert "JAX_DEFAULT_MATMUL_PRECISION" in text


def test_a_gpu_that_jax_does_not_use(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert doctor.check_devices().remedy == "There is an NVIDIA GPU: pip install 'dim_jax[gpu]'."
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert doctor.check_devices().remedy == ""


def test_packages_that_are_missing_or_old(monkeypatch):
    needs = ["jax>=99", "nothing-of-this-name>=1; extra == 'train'", "numpy", "flax>=99; python_version < '3'"]
    monkeypatch.setattr(doctor, "requires", lambda name: needs)
    assert doctor.missing_packages() == [f"jax>=99 ({jax.__version__} is installed)"]
    assert doctor.missing_packages("train") == ["nothing-of-this-name>=1"]
    assert "pip install --upgrade dim_jax" in doctor.check_packages().remedy


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    assert "cannot be written to" in doctor.check_folder("hub", tmp_path / "file/below").detail
    monkeypatch.setattr(doctor, "LITTLE_DISK", 2**80)
    assert "Free space there" in doctor.check_folder("hub", tmp_path / "below").remedy


@pytest.mark.parametrize(("running", "fits"), [("3.10.2", False), ("3.12.1", True)])
def test_python_of_another_version(running, fits):
    assert (doctor.check_python(running).remedy == "") == fits
