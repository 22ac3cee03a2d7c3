"""Configs of the construction: the TOML files of this package, and a user's changes to them."""

import tomllib
from copy import deepcopy
from importlib import resources
from pathlib import Path
from typing import Any

from dim_jax.errors import InputError, check

USER_TABLES = ("filter", "sources")  # tables whose keys the user may choose


def read_config(name: str, changes: Path | None) -> dict[str, Any]:
    """The config of this package by the name of its file, with the changes of a user's file.

    Tables are merged; everything else is replaced.

    Raises:
        InputError: the user's file cannot be read, has an unknown key, or gives another type of value.
    """
    config = tomllib.loads(resources.files("dim_jax.datasets.construction").joinpath(name).read_text(encoding="utf-8"))
    if changes is None:
        return config
    try:
        user_config = tomllib.loads(changes.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{changes}: cannot be read ({getattr(error, 'strerror', None) or error}). Give a file in TOML.") from error
    return _merge(config, user_config, str(changes), "")


def _merge(defaults: dict[str, Any], changes: dict[str, Any], file: str, path: str) -> dict[str, Any]:
    merged = deepcopy(defaults)
    for key, value in changes.items():
        name = f"{path}{key}"
        user_table = path.split(".")[0] in USER_TABLES
        check(key in defaults or user_table, f"{file}: there is no key {name}. Those of this table: {', '.join(defaults)}.")
        if key in defaults and type(value) is not type(defaults[key]):
            raise InputError(f"{file}: {name} is {value!r}; give a {type(defaults[key]).__name__}, such as {defaults[key]!r}.")
        merged[key] = _merge(defaults.get(key, {}), value, file, f"{name}.") if isinstance(value, dict) else value
    return merged
