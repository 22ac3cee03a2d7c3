"""`dim verify` as a user runs it, on the bundled nano model and the tiny one: agreement, tensors that are off, no PyTorch."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dim_jax.cli.main import main
from dim_jax.verify import case, jax_stages
from dim_jax.verify.stages import STAGES
from dim_jax.weights.bundled import NANO
from tests.painter_fixtures import one_error, tiny_checkpoint
from tests.published import run as convert

# A tensor of each part, and the first stage that it changes.
TENSORS = [
    ("mllm.model.layers.0.mlp.down_proj.weight", "encoder", "encoder states"),
    ("mllm.visual.merger.mlp.2.weight", "encoder", "encoder states"),
    ("projector.2.weight", "connector", "condition"),
    ("decoder.model.blocks.1.mlp.point_conv.conv.weight", "sana", "velocity at 0.875"),
    ("decoder.vae.encoder.conv_out.weight", "autoencoder", "source latents"),
    ("decoder.vae.decoder.conv_in.weight", "autoencoder", "picture"),
]
BLOCKER = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "diffusers"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
from dim_jax.cli.main import main
main()
"""


def verify(*arguments: object) -> tuple[int, str, str]:
    """Exit code, and what it wrote to stdout and stderr."""
    out, errors = io.StringIO(), io.StringIO()
    argv = mock.patch.object(sys, "argv", ["dim", "verify", *map(str, arguments)])
    with argv, contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors), pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0), out.getvalue(), errors.getvalue()


def verdicts(text: str) -> dict[str, bool]:
    """Stage -> whether the table calls it ok."""
    found = {}
    for line in text.splitlines():
        name = next((name for name in STAGES if line.strip().startswith(name)), None)
        if name:
            found[name] = line.split()[-1] == "ok"
    return found


def changed(source: Path, folder: Path, name: str, by: float = 1.01) -> Path:
    """A copy of a checkpoint of one file with a tensor multiplied."""
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = (tensors[name].astype(np.float32) * np.float32(by)).astype(tensors[name].dtype)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture(scope="module")
def recorded(tiny) -> Path:
    """Fingerprints of the tiny model; the run that records them agrees with PyTorch as well."""
    file = tiny.parent / "tiny.json"
    code, out, errors = verify(tiny, "--record", file)
    assert (code, errors) == (0, ""), out + errors
    assert verdicts(out) == dict.fromkeys(STAGES, True)
    assert f"wrote {file}" in out
    assert out.splitlines()[-1].startswith("OK: ")
    return file


# What agrees


def test_the_bundled_model_agrees_with_pytorch(tmp_path, monkeypatch):
    """In four steps: the tiny model, which is recorded, takes them all."""
    monkeypatch.setattr(case, "STEPS", 4)
    code, out, errors = verify(NANO, "--record", tmp_path / "nano.json")
    assert (code, errors) == (0, ""), out
    assert "327 tensors, BF16" in out
    assert verdicts(out) == dict.fromkeys(STAGES, True)
    assert (tmp_path / "nano.json").stat().st_size < 200_000


@pytest.mark.parametrize("form", ["orbax", "diffusers"])
def test_other_formats_and_dtypes_of_the_same_weights(tiny, recorded, tmp_path, form):
    convert(tiny, tmp_path / form, form, tokenizer=tiny)
    code, out, _ = verify(tmp_path / form, "--against", recorded)
    assert code == 0, out
    assert "bit-identical to the recorded ones" in out


def test_rounded_weights_agree_in_bfloat16_alone(tiny, recorded, tmp_path):
    convert(tiny, tmp_path / "rounded", "orbax", dtype="bfloat16")
    code, out, _ = verify(tmp_path / "rounded", "--against", recorded, "--dtype", "bfloat16")
    assert code == 0, out
    code, out, errors = verify(tmp_path / "rounded", "--against", recorded)
    assert code == 1
    assert "--dtype bfloat16 if it was only rounded" in one_error((code, errors))


# One weight off by 1 %


@pytest.mark.parametrize(("name", "part", "stage"), TENSORS)
def test_a_changed_tensor_and_its_first_stage_are_named(tiny, recorded, tmp_path, name, part, stage):
    code, out, _ = verify(changed(tiny, tmp_path / "changed", name), "--against", recorded)
    assert code == 1
    assert f"1 of 293 differ from the recorded ones: {name} (off by 1.0e-02)" in " ".join(out.split()), out
    assert out.splitlines()[-1] == f"FAILED. Look at: the weights of {part}; {part} ({stage} is the first stage that differs)."
    assert all(verdicts(out)[before] for before in list(STAGES)[: list(STAGES).index(stage)])


def test_faults_of_two_parts_are_both_named(tiny, monkeypatch):
    """The file is the same for both sides; ours loses 1 % of two tensors on their way into the network."""
    taken, off = jax_stages.JaxStages._module, ("connector.fc2.kernel", "autoencoder.encoder.conv_out.kernel")

    def module(self, part, tensors):
        for path in off:
            if path in tensors and path.startswith(f"{part}."):
                tensors[path] = tensors[path] * np.float32(1.01)
        return taken(self, part, tensors)

    monkeypatch.setattr(jax_stages.JaxStages, "_module", module)
    code, out, _ = verify(tiny)
    assert code == 1
    last = out.splitlines()[-1]
    assert "autoencoder (source latents is the first stage that differs)" in last
    assert "connector (condition is the first stage that differs)" in last
    assert "sana" not in last
    assert all(verdicts(out)[name] for name in ("tokens", "encoder states"))


def test_other_tokens_are_found(tiny, recorded, tmp_path):
    data = json.loads(recorded.read_text())
    data["stages"]["tokens"]["values"][3] += 1
    (tmp_path / "other.json").write_text(json.dumps(data))
    code, out, _ = verify(tiny, "--against", tmp_path / "other.json")
    assert code == 1
    assert out.splitlines()[-1] == "FAILED. Look at: tokenizer (tokens is the first stage that differs)."


# Tensors that cannot be used


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_tensors_that_are_not_finite_are_all_named(tiny, recorded, tmp_path, value):
    names = ["mllm.model.norm.weight", "decoder.vae.decoder.conv_in.bias"]
    folder = tmp_path / "bad"
    shutil.copytree(tiny, folder)
    tensors = load_file(folder / "model.safetensors")
    for name in names:
        tensors[name].flat[1] = value
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    for against in ("torch", recorded):
        code, out, errors = verify(folder, "--against", against)
        message = one_error((code, errors))
        assert out == ""
        assert all(f"{name} is not finite" in message for name in names)


def test_tensors_of_wrong_shape_and_missing_ones_are_all_named(tiny, tmp_path):
    folder = tmp_path / "bad"
    shutil.copytree(tiny, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["projector.0.weight"] = tensors["projector.0.weight"][:-1]
    del tensors["decoder.vae.encoder.conv_out.bias"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    code, _, errors = verify(folder)
    message = one_error((code, errors))
    assert "projector.0.weight is (" in message
    assert "decoder.vae.encoder.conv_out.bias" in message
    assert "is missing" in message


# Files and machines


def test_without_pytorch_a_file_is_enough(tiny, recorded, tmp_path):
    """In a process that cannot import torch or diffusers."""
    run = lambda *more: subprocess.run(  # noqa: E731
        [sys.executable, "-c", BLOCKER, "verify", str(tiny), *more], capture_output=True, text=True, check=False, cwd=os.getcwd()
    )
    done = run("--against", str(recorded))
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("OK: ")
    for more in ((), ("--record", str(tmp_path / "new.json"))):
        done = run(*more)
        message = one_error((done.returncode, done.stderr))
        assert "dim_jax[verify]" in message
        assert "--against FILE" in message
    assert not list(tmp_path.iterdir())


def test_fingerprints_of_another_checkpoint_are_refused(tiny, recorded, tmp_path):
    code, out, errors = verify(NANO, "--against", recorded)
    assert f"{recorded}: was recorded with another checkpoint than {NANO}" in one_error((code, errors))
    other = tmp_path / "other"
    shutil.copytree(tiny, other)
    tensors = load_file(other / "model.safetensors")
    save_file({name: tensor * np.float32(1.5) for name, tensor in tensors.items()}, other / "model.safetensors", {"format": "pt"})
    code, out, errors = verify(other, "--against", recorded)
    assert "was recorded with another checkpoint" in one_error((code, errors))
    assert out == ""


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format": 1}', '{"format": 2}', '{"format": 1, "settings": {"resolution": "x"}}', "null", "\x00"],
)
def test_files_that_are_no_fingerprints_are_one_line(tiny, tmp_path, text):
    (tmp_path / "file.json").write_text(text)
    code, _, errors = verify(tiny, "--against", tmp_path / "file.json")
    assert str(tmp_path / "file.json") in one_error((code, errors))


def test_unavailable_stages_are_refused(tiny, recorded, tmp_path):
    assert "exists" in one_error(verify(tiny, "--record", recorded)[::2])
    assert "does not exist" in one_error(verify(tiny, "--record", tmp_path / "no/file.json")[::2])
    assert "no such file" in one_error(verify(tmp_path / "nothing")[::2])
    assert "must be a multiple of" in one_error(verify(tiny, "--resolution", "70")[::2])
    assert verify(tiny, "--against", recorded, "--record", tmp_path / "x.json")[0] == 2


def test_parts_of_a_draw_in_mind_are_refused(tiny, tmp_path):
    tensors = load_file(tiny / "model.safetensors")
    folder = tmp_path / "sana"
    folder.mkdir()
    prefix = "decoder.model."
    sana = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    save_file(sana, folder / "model.safetensors")
    shutil.copy(tiny / "sana_edit.json", folder)
    assert "has only sana" in one_error(verify(folder)[::2])


def test_a_checkpoint_that_only_paints_from_text(tiny, tmp_path):
    folder = tmp_path / "t2i"
    shutil.copytree(tiny, folder)
    tensors = load_file(folder / "model.safetensors")
    kernel = tensors["decoder.model.x_embedder.proj.weight"]
    tensors["decoder.model.x_embedder.proj.weight"] = np.ascontiguousarray(kernel[:, : kernel.shape[1] // 2])
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    sizes = json.loads((folder / "sana_edit.json").read_text())
    (folder / "sana_edit.json").unlink()
    (folder / "sana_t2i.json").write_text(json.dumps(sizes | {"in_channels": sizes["in_channels"] // 2}))
    code, out, errors = verify(folder)
    assert code == 0, out + errors
