"""Configs of the construction: the TOML files of this package, and a user's changes to them."""

import tomllib
from copy import deepcopy
from importlib import resources
from pathlib import Path
from typing import Any

from dim_jax.errors import InputError

OPEN = ("filter", "sources")  # tables whose keys are names of the user's


def read_config(name: str, changes: Path | None) -> dict[str, Any]:
    """The config of this package by the name of its file, with what a user's file changes.

    Tables are merged; everything else is replaced.

    Raises:
        InputError: the user's file cannot be read, has an unknown key, or gives another type of value.
    """
    config = tomllib.loads(resources.files("dim_jax.datasets.construction").joinpath(name).read_text(encoding="utf-8"))
    if changes is None:
        return config
    try:
        own = tomllib.loads(changes.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{changes}: cannot be read ({getattr(error, 'strerror', None) or error}). Give a file in TOML.") from error
    return _merged(config, own, str(changes), "")


def _merged(ours: dict[str, Any], theirs: dict[str, Any], file: str, path: str) -> dict[str, Any]:
    merged = deepcopy(ours)
    for key, value in theirs.items():
        where = f"{path}{key}"
        free = path.split(".")[0] in OPEN
        if key not in ours and not free:
            raise InputError(f"{file}: there is no key {where}. Those of this table: {', '.join(ours)}.")
        if key in ours and type(value) is not type(ours[key]):
            raise InputError(f"{file}: {where} is {value!r}; give a {type(ours[key]).__name__}, such as {ours[key]!r}.")
        merged[key] = _merged(ours.get(key, {}), value, file, f"{where}.") if isinstance(value, dict) else value
    return merged
