"""Every golden, and that the checker says what is wrong with a folder."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.parity import check_goldens
from tests.parity.goldens import Goldens

# How many groups each name has: a part that checks nothing would pass.
GROUPS = {"chat": 7, "preprocess": 25, "sana_t2i": 37, "sana_edit": 37, "qwen": 33, "dc_ae": 6, "dim_edit": 74, "adamw": 9}
TOKENIZER = os.environ.get("DIM_QWEN_TOKENIZER")


@pytest.mark.parametrize("name", check_goldens.NAMES)
def test_goldens(goldens, name):
    lines = list(check_goldens.check(Goldens(goldens), name))
    assert all(line.ok for line in lines), "\n".join(str(line) for line in lines if not line.ok)
    assert len(lines) == GROUPS[name]


@pytest.mark.skipif(TOKENIZER is None, reason="DIM_QWEN_TOKENIZER names no folder with Qwen's tokenizer")
def test_ids_of_the_real_vocabulary(goldens):
    assert all(line.ok for line in check_goldens.check(Goldens(goldens), "chat", Path(TOKENIZER)))


@pytest.fixture
def folder(tmp_path, goldens) -> Path:
    """The goldens of preprocessing and chat, which need no compilation."""
    for file in ("preprocess.json", "preprocess.safetensors", "chat.json"):
        shutil.copy(goldens / file, tmp_path)
    return tmp_path


def run(capsys, folder: Path, *names: str) -> tuple[int, str]:
    status = check_goldens.main([str(folder), *(part for name in names for part in ("--only", name))])
    return status, capsys.readouterr().out


def test_it_runs_as_a_script_from_anywhere(folder):
    script = Path(check_goldens.__file__)
    command = [sys.executable, str(script), str(folder), "--only", "preprocess"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "ok   preprocess.0.native.pixel_values" in done.stdout


def test_a_missing_file_is_named_and_the_others_are_still_checked(capsys, folder):
    (folder / "chat.json").unlink()
    status, text = run(capsys, folder, "chat", "preprocess")
    assert status == 1
    assert "chat.json: missing file" in text
    assert "ok   preprocess.smart_resize" in text


def test_all_names_of_an_empty_folder_fail(capsys, tmp_path):
    status, text = run(capsys, tmp_path)
    assert status == 1
    assert {line.split()[1] for line in text.splitlines() if line.startswith("FAIL")} == check_goldens.NAMES.keys()


def test_a_missing_key_is_named(capsys, folder):
    info = json.loads((folder / "preprocess.json").read_text())
    del info["atol"]
    (folder / "preprocess.json").write_text(json.dumps(info))
    status, text = run(capsys, folder, "preprocess")
    assert status == 1
    assert "preprocess.json: missing key 'atol'" in text


def missing(tensors):
    del tensors["1.native.pixel_values"]


def unread(tensors):
    tensors["1.native.more"] = np.zeros(1)


def misshapen(tensors):
    tensors["1.native.pixel_values"] = tensors["1.native.pixel_values"][1:]


def not_a_number(tensors):
    tensors["1.native.pixel_values"][3, 5] = np.nan


def infinite(tensors):
    tensors["1.native.pixel_values"][3, 5] = np.inf


def too_large(tensors):
    tensors["1.native.pixel_values"][3, 5] += 0.021


WRONG = (
    (missing, "missing tensor '1.native.pixel_values'"),
    (unread, "unread tensor"),
    (misshapen, "expected (15, 1176)"),
    (not_a_number, "not finite: 1 of the golden"),
    (infinite, "not finite: 1 of the golden"),
    (too_large, "2.10e-02 / 2.00e-02"),
)


@pytest.mark.parametrize(("change", "says"), WRONG, ids=lambda value: getattr(value, "__name__", ""))
def test_a_wrong_tensor_fails(capsys, folder, change, says):
    tensors = {name: tensor.copy() for name, tensor in load_file(folder / "preprocess.safetensors").items()}
    change(tensors)
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, folder / "preprocess.safetensors")
    status, text = run(capsys, folder, "preprocess")
    assert status == 1
    failed = [line for line in text.splitlines() if line.startswith("FAIL")]
    assert says in failed[0]
    assert all(line.split()[1].startswith("preprocess.1.native") for line in failed if "missing" not in line)


def test_ours_not_finite_fails():
    assert not check_goldens.compare(check_goldens.Group("x", np.array([np.nan]), np.array([0.0]), 1, 1)).ok


def test_a_file_that_is_cut_off_is_one_line(capsys, folder):
    (folder / "preprocess.safetensors").write_bytes((folder / "preprocess.safetensors").read_bytes()[:1000])
    status, text = run(capsys, folder, "preprocess", "chat")
    assert status == 1
    assert len([line for line in text.splitlines() if line.startswith("FAIL")]) == 1
    assert "ok   chat.0.rendered" in text
