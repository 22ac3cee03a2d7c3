"""A run's config by its file or by its name."""

from pathlib import Path

import pytest

from dim_jax.config import flatten, read_config, restore_config
from dim_jax.errors import InputError
from dim_jax.training.config_guard import check_config

CONFIGS = Path(__file__).parents[1] / "configs"


def test_a_config_of_the_package_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("nano_edit", "nano_edit.py"):
        assert flatten(read_config(Path(name), {})) == flatten(read_config(CONFIGS / "nano_edit.py", {}))
    with pytest.raises(InputError, match=r"nano_edits: there is no such config. Give a file, or one of common, distill_.*nano_edit, "):
        read_config(Path("nano_edits"), {})
    with pytest.raises(InputError, match=r"mine/nano_edit\.py: there is no such config"):
        read_config(Path("mine/nano_edit.py"), {})


def test_a_config_of_an_older_version_gets_the_defaults_of_newer_keys():
    recorded = read_config(Path("nano_edit"), {"optim.learning_rate": "0.5", "data.mix": "{'edit': 1.0}"}).to_dict()
    del recorded["lora"], recorded["optim"]["name"], recorded["model"]["quantize"]
    config = restore_config(recorded)
    assert (config.lora.rank, config.optim.name, config.model.quantize) == (0, "adamw", "none")
    assert (config.optim.learning_rate, config.data.mix.to_dict()) == (0.5, {"edit": 1.0})
    check_config(config)
