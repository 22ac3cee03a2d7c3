"""Training from the command line to the exported checkpoint: what is logged, kept, resumed, refused."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
import pytest
from ml_collections import ConfigDict

from dim_jax import train as train_module
from dim_jax.config import flatten, read_config
from dim_jax.data.synthetic import Synthetic
from dim_jax.models.dc_ae_config import DCAEConfig
from dim_jax.models.module import with_parameters
from dim_jax.pipeline import EditPipeline
from dim_jax.processing.pictures import autoencoder_pixels
from dim_jax.storage.paths import AnyPath
from dim_jax.training import held_out
from dim_jax.training.objectives import make_objective
from dim_jax.training.resume import latest_step
from dim_jax.training.supervision import STOPPED
from dim_jax.weights.convert import open_weights
from dim_jax.weights.model_config import ModelConfig
from tests.painter_fixtures import dim, one_error, picture

CONFIGS = Path(__file__).parents[1] / "configs"
# Without a cosine the number of steps is no part of the step's program, which is compiled once for runs of any length.
SMALL = {
    "data.source": "synthetic", "data.batch_size": "2", "data.resolution": "32", "data.lengths": "(96, 192)", "model.encoder": "tiny",
    "model.sana": "tiny", "model.autoencoder": "tiny", "train.log_every": "1", "train.save_every": "2", "train.show_every": "0",
    "optim.warmup_steps": "2", "optim.cosine": "False", "sample.num_steps": "2",
}  # fmt: skip


def arguments(config: str, workdir: AnyPath, steps: int, *more: str, **changes: str) -> list[str]:
    """`dim train` of a small model with `more` options; in the names of changed keys two underlines stand for a dot."""
    values = SMALL | {key.replace("__", "."): value for key, value in changes.items()}
    options = [option for key, value in values.items() for option in ("--set", f"{key}={value}")]
    return ["train", "--config", str(CONFIGS / f"{config}.py"), "--workdir", str(workdir), "--steps", str(steps), *more, *options]


def train(config: str, workdir: AnyPath, steps: int, *more: str, **changes: str) -> tuple[int, str]:
    return dim(*arguments(config, workdir, steps, *more, **changes))


def last_error(result: tuple[int, str]) -> str:
    """The message with which a run ended, after what it said before."""
    code, text = result
    assert code == 1, text
    *_, message = text.splitlines()
    assert message.startswith("error: ")
    return message


def log(workdir: Path, name: str = "log.jsonl") -> list[dict]:
    return [json.loads(line) for line in (workdir / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def painter_run(tmp_path_factory) -> Path:
    """Four steps of the edit painter, two of them traced."""
    workdir = tmp_path_factory.mktemp("painter") / "run"
    code, text = train("nano_edit", workdir, 4, "--profile", "2:3", train__show_every="4")
    assert code == 0, text
    return workdir


@pytest.fixture(scope="module")
def encoder_run(tmp_path_factory) -> Path:
    """Two steps of the encoder at a rate that stays as it is; tests go on with copies."""
    workdir = tmp_path_factory.mktemp("encoder") / "run"
    assert train("nano_encoder", workdir, 2)[0] == 0
    return workdir


def test_trained_checkpoint_paints(painter_run):
    pipeline = EditPipeline.from_pretrained(painter_run / "model")
    assert pipeline.sampler.settings.num_steps == 2
    assert pipeline.sampler.settings.resolution == 32
    painted = pipeline(["make the sky red."], [picture(32, 32)])[0]
    assert painted.image.size == (32, 32)
    assert len(list((painter_run / "sheets").glob("*.png"))) == 1


def test_the_log_and_the_files_of_a_run(painter_run):
    assert [line["step"] for line in log(painter_run)] == [1, 2, 3, 4]
    assert all(np.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in log(painter_run))
    assert sorted(path.name for path in painter_run.iterdir()) == [
        "checkpoints", "config.json", "log.jsonl", "model", "profile", "settings.json", "sheets", "speed.jsonl", "tensorboard", "tokenizer",
    ]  # fmt: skip
    assert log(painter_run, "speed.jsonl")[-1].keys() == {"step", "steps_per_second", "samples_per_second", "waiting_for_data"}
    assert sorted(path.name for path in (painter_run / "checkpoints").iterdir()) == ["2", "4"]
    notes = ocp.metadata(painter_run / "checkpoints/4").custom_metadata
    assert flatten(ConfigDict(notes["config"])) == json.loads((painter_run / "config.json").read_text())
    assert len(list(painter_run.glob("profile/**/*.xplane.pb"))) == 1


@pytest.fixture(scope="module")
def float8_step(tmp_path_factory) -> Path:
    """One step of the same painter in float8. Its learning rate is still zero, so its model is what both began with."""
    workdir = tmp_path_factory.mktemp("float8") / "run"
    assert train("nano_edit", workdir, 1, model__float8="True")[0] == 0
    return workdir


def test_a_step_in_float8_has_nearly_the_loss_and_gradient_of_another(painter_run, float8_step):
    (near,), (exact, *_) = log(float8_step), log(painter_run)
    for name, largest in (("loss", 0.02), ("grad_norm", 0.1)):
        assert 0 < abs(near[name] / exact[name] - 1) < largest


def test_only_trainable_components_change(painter_run, float8_step):
    before, after = (dict(open_weights(run / "model").stream()) for run in (float8_step, painter_run))
    changed = dict.fromkeys(("encoder", "connector", "sana", "autoencoder"), False)
    for path, tensor in before.items():
        changed[path.split(".")[0]] |= not np.array_equal(tensor, after[path])
    assert changed == {"encoder": False, "connector": True, "sana": True, "autoencoder": False}


@pytest.mark.parametrize("batches", [0, 1])
def test_sigterm_ends_a_run_that_waits_for_data(tmp_path, monkeypatch, batches):
    load = train_module.batches

    def hang(*loader: Any, **options: Any) -> Iterator[Any]:
        yield from itertools.islice(load(*loader, **options), batches)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(600)

    monkeypatch.setattr(train_module, "batches", hang)
    code, text = train("nano_encoder", tmp_path, 2)
    assert code == STOPPED
    assert f"SIGTERM: the same command goes on after step {batches}\n" in text
    assert latest_step(tmp_path / "checkpoints") == batches
    monkeypatch.undo()
    assert train("nano_encoder", tmp_path, 2)[0] == 0
    assert [line["step"] for line in log(tmp_path)] == [1, 2]


def test_resumed_run_logs_same_losses(tmp_path):
    options = {"optim__name": "muon", "optim__mu_dtype": "bfloat16", "model__remat": "auto"}
    assert train("nano_t2i", tmp_path / "whole", 4, **options)[0] == 0
    assert train("nano_t2i", tmp_path / "parts", 2, **options)[0] == 0
    code, text = train("nano_t2i", tmp_path / "parts", 4, **options)
    assert code == 0
    assert "going on after step 2" in text
    assert 'model.remat "none": a step takes' in text
    assert log(tmp_path / "parts") == log(tmp_path / "whole")


def test_trained_autoencoder_exports_unit_variance_latents(tmp_path):
    assert train("nano_autoencoder", tmp_path / "run", 3, optim__cosine="True")[0] == 0
    weights = open_weights(tmp_path / "run/model")
    assert weights.config.parts == ("autoencoder",)
    objective = make_objective(read_config(CONFIGS / "nano_autoencoder.py", SMALL), weights.config, None)
    model = with_parameters(objective.model, {path: jnp.asarray(tensor) for path, tensor in weights.stream()})
    pictures = [Synthetic("caption", 32)[i].target for i in range(256)]
    latents = model.autoencoder.encode(jnp.asarray(np.stack([autoencoder_pixels(one, (32, 32)) for one in pictures])))
    assert 0.8 < float(latents.std()) < 1.25


def test_the_encoder_learns_to_write(tmp_path, monkeypatch):
    """On devices of which a peak is known, what each step computes is told as a share of it."""
    monkeypatch.setattr("dim_jax.train.peak_flops", lambda kind: 1e12)
    code, text = train("nano_encoder", tmp_path / "run", 3, train__show_every="100")
    assert code == 0, text
    assert text.count("% MFU") == 3
    assert all(0 < line["mfu"] < 1 for line in log(tmp_path / "run", "speed.jsonl"))
    page = (tmp_path / "run/sheets/000003.md").read_text()
    assert page.count("written: ") == page.count("wanted: ") == 8
    assert open_weights(tmp_path / "run/model").config.parts == ("encoder",)
    assert log(tmp_path / "run")[-1]["loss"] < log(tmp_path / "run")[0]["loss"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"objective": "nothing"}, "painter"),
        ({"train__save_every": "0"}, "save_every 0"),
        ({"train__keep_every": "3"}, "keep_every 3 must be a multiple of save_every 2"),
        ({"train__watchdog_minutes": "-1.0"}, "watchdog_minutes -1.0"),
        ({"trainable": "('sana',)"}, "connector"),
        ({"model__sana": "huge"}, "sana_1600m"),
        ({"data__mix__caption": "0.0"}, "positive weight"),
        ({"data__mix": "{'caption': 'often'}"}, "data.mix is {'caption': 'often'}: give at least one part a positive weight"),
        ({"data__mix": "caption"}, "data.mix is a group of keys (caption, edit). Change one of these, or give a dict."),
        ({"data__mix": "{'caption:nowhere': 1.0}", "data__source": "data", "init__encoder": "", "init__autoencoder": ""}, "nowhere: there"),
        ({"optim": "{'learning_rate': 1.0}"}, "optim is a group of keys (accumulate, betas"),
        ({"data__source": "nowhere", "init__encoder": "", "init__autoencoder": ""}, "nowhere"),
        ({"data__source": "nowhere", "init__encoder": "missing"}, "missing"),
        ({"optim__learning_rat": "1.0"}, "optim.learning_rat: there is no such key"),
        ({"optim__learning_rate": "fast"}, "optim.learning_rate=fast"),
        ({"optim__accumulate": "2"}, "accumulate is 2"),
        ({"optim__name": "lion"}, "config.optim.name is 'lion', but must be one of adamw, muon"),
        ({"objective": "encoder", "model__float8": "True", "trainable": "('encoder',)", "frozen": "()"}, "config.model.float8 is of SANA"),
    ],
)
def test_inconsistent_config_is_refused(changes, says, tmp_path):
    assert says in last_error(train("nano_t2i", tmp_path / "run", 1, **changes))
    assert not (tmp_path / "run/checkpoints").exists()


def test_texts_that_are_too_long_for_their_buckets(tmp_path):
    assert "the longest bucket 20" in last_error(train("nano_t2i", tmp_path / "run", 1, data__lengths="(20,)"))


def test_a_workdir_belongs_to_one_config(painter_run):
    text = last_error(train("nano_edit", painter_run, 4, optim__learning_rate="0.5"))
    assert "optim.learning_rate was 0.001, is 0.5" in text


def test_a_loss_that_is_not_finite_stops_the_run(encoder_run, tmp_path):
    """The batch is named, and the run goes on from the last good state with another config, which it is told and notes."""
    workdir = shutil.copytree(encoder_run, tmp_path / "run")
    broken = {"optim__learning_rate": "1e30", "optim__clip_global_norm": "1e30"}
    text = last_error(train("nano_encoder", workdir, 30, "--allow-changes", **broken))
    found = json.loads((workdir / "non_finite.json").read_text())
    assert f"Step {found['step']}: the loss is {found['metrics']['loss']}" in text
    assert found["metrics"]["loss"] in ("nan", "inf")
    assert [key.split("/")[0] for key in found["keys"]] == ["synthetic"] * 2
    assert [line["step"] for line in log(workdir)] == list(range(1, found["step"]))
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == ["2"]

    assert "optim.learning_rate was 1e+30, is 0.001" in last_error(train("nano_encoder", workdir, 4))
    code, text = train("nano_encoder", workdir, 4, "--allow-changes")
    assert code == 0, text
    assert "going on after step 2" in text
    changes = [json.loads(line) for line in (workdir / "changes.jsonl").read_text().splitlines()]
    assert [(change["step"], change["changed"]["optim.learning_rate"]) for change in changes] == [(2, [0.001, 1e30]), (2, [1e30, 0.001])]


def test_missing_config_file_is_refused(tmp_path):
    workdir = ("--workdir", str(tmp_path / "run"))
    assert "missing.py" in one_error(dim("train", "--config", "missing.py", *workdir))
    (tmp_path / "empty.py").write_text("")
    assert "get_config" in one_error(dim("train", "--config", str(tmp_path / "empty.py"), *workdir))
    (tmp_path / "wrong.py").write_text("from configs import common\ndef get_config():\n    common.get_config().optim.speed = 1\n")
    (tmp_path / "configs").mkdir()
    shutil.copy(CONFIGS / "common.py", tmp_path / "configs")
    shutil.move(tmp_path / "wrong.py", tmp_path / "configs")
    assert "speed" in one_error(dim("train", "--config", str(tmp_path / "configs/wrong.py"), *workdir))
    assert dim("train", "--config", "x.py", *workdir, "--set", "steps")[0] == 2
    assert dim("train", "--config", "x.py", *workdir, "--profile", "3")[0] == 2


def test_without_the_packages_of_training_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    assert "needs the package grain. Install it: pip install 'dim_jax[train]'" in one_error(train("nano_edit", tmp_path / "run", 1))


def test_a_damaged_checkpoint_is_named(encoder_run, tmp_path):
    shutil.copytree(encoder_run, tmp_path / "run")
    for file in (tmp_path / "run/checkpoints/2/state/d").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    # In a process of its own: Orbax leaves coroutines behind that nobody awaits, and Python says so whenever it finds them.
    command = [sys.executable, "-m", "dim_jax.cli", *arguments("nano_encoder", tmp_path / "run", 2)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=CONFIGS.parent, check=False)
    assert ended.returncode == 1
    *_, message = ended.stderr.splitlines()
    assert message.startswith(f"error: {tmp_path / 'run/checkpoints/2'}: is damaged")
    assert "Traceback" not in ended.stderr


def test_refused_start_leaves_workdir_usable(tmp_path):
    """Whatever was wrong: the tokenizer is of the texts of the right start, and no key of a wrong one is held against it."""
    for wrong in ({"data__lengths": "(8,)"}, {"sharding__fsdp": "7"}, {"data__batch_size": "0"}, {"init__encoder": "nowhere"}):
        source = {"data__source": "nowhere"} if "init__encoder" in wrong else {}
        assert last_error(train("nano_encoder", tmp_path / "run", 1, **wrong, **source))
    assert train("nano_encoder", tmp_path / "other", 1)[0] == 0
    shutil.copytree(tmp_path / "other" / "tokenizer", tmp_path / "run" / "tokenizer", dirs_exist_ok=True)
    tokenizer = tmp_path / "run" / "tokenizer" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace("<|im_end|>", "<|finis|>"))
    code, text = train("nano_encoder", tmp_path / "run", 1)
    assert code == 0, text
    assert tokenizer.read_text() == (tmp_path / "other/tokenizer/tokenizer.json").read_text()
    assert (tmp_path / "run/log.jsonl").read_text() == (tmp_path / "other/log.jsonl").read_text()


def test_pictures_are_measured_a_few_at_a_time(monkeypatch):
    """At the end of a run 256 of 1024 x 1024 pixels would be one program otherwise; the factor is the same."""
    config = read_config(CONFIGS / "nano_autoencoder.py", SMALL)
    sizes = ModelConfig(autoencoder=DCAEConfig.tiny())
    objective, params = make_objective(config, sizes, None), sizes.init("autoencoder", 0)
    examples = [Synthetic("caption", 32)[n] for n in range(7)]
    whole = held_out.with_scaling_factor(objective, params, iter(examples)).autoencoder
    seen, encode = [], held_out._encode
    monkeypatch.setattr(held_out, "_encode", lambda module, pixels: (seen.append(len(pixels)), encode(module, pixels))[1])
    monkeypatch.setattr(held_out, "BATCH_PIXELS", 3 * 32**2 + 5)
    found = held_out.with_scaling_factor(objective, params, iter(examples)).autoencoder
    assert found.scaling_factor == pytest.approx(whole.scaling_factor, rel=1e-5)
    assert seen == [3, 3, 1]
