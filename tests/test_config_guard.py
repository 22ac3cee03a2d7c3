"""A run goes on with its own config, or with another one that it was told of."""

import json
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from dim_jax.config import read_config
from dim_jax.errors import InputError
from dim_jax.training.config_guard import check_config, record_config


def config(rate: float, steps: int) -> ConfigDict:
    return ConfigDict({"optim": {"rate": rate, "betas": (0.9, 0.99)}, "train": {"steps": steps}})


def test_config_changes_are_refused_or_logged(tmp_path):
    record_config(config(0.1, 10), tmp_path, step=0, allow_changes=False)
    assert json.loads((tmp_path / "config.json").read_text()) == {"optim.betas": [0.9, 0.99], "optim.rate": 0.1, "train.steps": 10}
    record_config(config(0.1, 10), tmp_path, step=5, allow_changes=False)
    assert not (tmp_path / "changes.jsonl").exists()
    record_config(config(0.1, 20), tmp_path, step=5, allow_changes=False)  # the curve does not depend on it
    with pytest.raises(InputError, match=r"optim.rate was 0.1, is 0.2. .*--allow-changes"):
        record_config(config(0.2, 30), tmp_path, step=6, allow_changes=False)
    record_config(config(0.2, 30), tmp_path, step=6, allow_changes=True)
    record_config(config(0.2, 30), tmp_path, step=7, allow_changes=False)  # what was allowed is the config from then on
    assert [json.loads(line) for line in (tmp_path / "changes.jsonl").read_text().splitlines()] == [
        {"step": 5, "changed": {"train.steps": [10, 20]}},
        {"step": 6, "changed": {"optim.rate": [0.1, 0.2], "train.steps": [20, 30]}},
    ]


def test_a_key_that_is_newer_than_the_run_counts_as_its_default(tmp_path):
    record_config(ConfigDict({"train": {"steps": 10}}), tmp_path, step=0, allow_changes=False)
    newer = ConfigDict({"train": {"steps": 10}, "optim": {"accumulate": 2, "betas": (0.9, 0.999)}})
    with pytest.raises(InputError, match=r"with another config: optim.accumulate was 1, is 2. "):
        record_config(newer, tmp_path, step=5, allow_changes=False)
    newer.optim.accumulate = 1
    record_config(newer, tmp_path, step=5, allow_changes=False)
    assert not (tmp_path / "changes.jsonl").exists()
    assert json.loads((tmp_path / "config.json").read_text())["optim.accumulate"] == 1


def test_workdir_without_state_accepts_new_config(tmp_path):
    """It may have been refused; its bad rows may be of other data."""
    record_config(config(0.1, 10), tmp_path, step=0, allow_changes=False)
    (tmp_path / "bad_samples.jsonl").write_text("{}\n")
    record_config(config(0.2, 10), tmp_path, step=0, allow_changes=False)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    with pytest.raises(InputError, match=r"optim.rate was 0.2, is 0.1"):
        record_config(config(0.1, 10), tmp_path, step=1, allow_changes=False)


def test_curriculum_equals_its_json_roundtrip(tmp_path):
    """JSON knows no tuples, however deep."""
    config = ConfigDict({"data": {"mix": {"edit": 1.0, "caption": 0.0}, "curriculum": ((9, {"edit": 0.5, "caption": 0.5}),)}})
    for step in (0, 5):
        record_config(config, tmp_path, step=step, allow_changes=False)
    assert json.loads((tmp_path / "config.json").read_text())["data.curriculum"] == [[9, {"edit": 0.5, "caption": 0.5}]]
    config.data.curriculum = ((8, {"edit": 0.5, "caption": 0.5}),)
    with pytest.raises(InputError, match=r"data.curriculum was \[\[9, "):
        record_config(config, tmp_path, step=6, allow_changes=False)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("optim.learning_rate", "-1.0", "at least 0"), ("optim.learning_rate", "1e999", "at least 0"),
        ("optim.warmup_steps", "-1", "at least 0"),
        ("optim.ema_decay", "1.0", "less than 1"), ("optim.betas", "(0.9, 1.5)", "less than 1"),
        ("optim.clip_global_norm", "0.0", "above 0"), ("sample.num_steps", "0", "at least 1"), ("sample.blueprint_from", "x", "one of"),
        ("flow.condition_dropout", "1.5", "from 0 to 1"), ("flow.shift", "-3.0", "above 0"), ("flow.std", "0.0", "above 0"),
        ("optim.mup_base_width", "-1", "at least 0"), ("flow.contrastive", "1.0", "less than 1"),
        ("data.workers", "-1", "at least 0"),
        ("data.batch_size", "0", "at least 1"), ("data.max_aspect_ratio", "0.5", "at least 1"),
    ],
)  # fmt: skip
def test_numbers_out_of_their_range_are_refused(key, value, says):
    """A run would begin with them, and learn nothing, or away from its data."""
    found = read_config(Path("nano_edit"), {key: value})
    with pytest.raises(InputError, match=rf"{key.rpartition('.')[2]} .*must be .*{says}"):
        check_config(found)
    check_config(read_config(Path("nano_edit"), {}))
