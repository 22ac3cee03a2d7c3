"""A run's config by its file or by its name."""

from pathlib import Path

import pytest

from dim_jax.config import flatten, read_config
from dim_jax.errors import InputError

CONFIGS = Path(__file__).parents[1] / "configs"


def test_a_config_of_the_package_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("nano_edit", "nano_edit.py"):
        assert flatten(read_config(Path(name), {})) == flatten(read_config(CONFIGS / "nano_edit.py", {}))
    with pytest.raises(InputError, match=r"nano_edits: there is no such config. Give a file, or one of common, edit_stage1, .*nano_edit, "):
        read_config(Path("nano_edits"), {})
    with pytest.raises(InputError, match=r"mine/nano_edit\.py: there is no such config"):
        read_config(Path("mine/nano_edit.py"), {})
