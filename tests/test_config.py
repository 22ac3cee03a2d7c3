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
    for name, text, says in (("notes.txt", "", "is not a Python file"), ("a.py", "x", "NameError"), ("b.py", "int('x')", "ValueError")):
        Path(name).write_text(text)
        with pytest.raises(InputError, match=rf"{name}: .*{says}"):
            read_config(Path(name), {})


def test_a_config_of_an_older_version_gets_the_defaults_of_newer_keys():
    recorded = read_config(Path("nano_edit"), {"optim.learning_rate": "0.5", "data.mix": "{'edit': 1.0}"}).to_dict()
    del recorded["lora"], recorded["optim"]["name"], recorded["model"]["quantize"]
    config = restore_config(recorded)
    assert (config.lora.rank, config.optim.name, config.model.quantize) == (0, "adamw", "none")
    assert (config.optim.learning_rate, config.data.mix.to_dict()) == (0.5, {"edit": 1.0})
    check_config(config)


@pytest.mark.parametrize(
    ("key", "text", "says"),
    [
        ("optim.learning_rate", "None", "learning_rate is 0.001 in the config; give another float"),
        ("optim.betas", "('a', 'b')", "give another tuple"),
        ("optim.betas", "(0.9, 0.9, 0.9)", "must have two numbers"),
        ("distill.guidance_scales", "(1.0, None)", "give another tuple"),
        ("trainable", "(1,)", "give another tuple"),
        ("data.lengths", "()", "must have at least one number"),
        ("data.lengths", "(96, 0)", "must be at least 1"),
        ("data.lengths", "(10**12,)", "give another tuple"),
        ("data.lengths", "(1000000000000,)", "below a million"),
        ("data.lengths", "(96.5, 1e400)", "whole"),
        ("data.resolution", "0", "must be at least 1"),
        ("data.batch_size", "1000000000000", "below a million"),
        ("seed", "-1", "must be at least 0"),
        ("data.shift", "1000000000000000000000", "below a million"),
        ("data.text", "Blueprint", "one of instruction, blueprint"),
        ("model.dtype", "float8", "one of float32, tf32, bfloat16, float16"),
        ("flow.draw", "normal", "one of logit_normal, uniform"),
    ],
)
def test_values_with_which_nothing_can_be_trained(key, text, says):
    """Of another type, None too, or out of range: one error that names the key, before anything is opened."""
    with pytest.raises(InputError, match=says) as error:
        check_config(read_config(Path("nano_edit"), {key: text}))
    assert key in str(error.value)
