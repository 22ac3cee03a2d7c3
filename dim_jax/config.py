"""Reading a run's config: a Python file with `get_config()`, and changes to single keys from the command line."""

import ast
import importlib.util
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from dim_jax.errors import InputError, input_errors

Config = Any  # a ConfigDict, whose keys no type checker knows
MIX = "data.mix"  # the one group whose keys a run chooses, so it may be replaced by a dict


PACKAGE = Path(__file__).parent
FOLDERS = (PACKAGE / "configs", PACKAGE.parent / "configs")  # of an installed package, and of a checkout


def find_config(path: Path) -> Path:
    """The file itself, or the config of that name which comes with the package, such as "nano_edit".

    Raises:
        InputError: there is no such config; names those that exist.
    """
    if path.is_file():
        return path
    configs = {file.stem: file for folder in reversed(FOLDERS) for file in sorted(folder.glob("[!_]*.py"))}
    if path.parent == Path() and path.name.removesuffix(".py") in configs:
        return configs[path.name.removesuffix(".py")]
    raise InputError(f"{path}: there is no such config. Give a file, or one of {', '.join(sorted(configs))}.")


def read_config(path: Path, changes: Mapping[str, str]) -> Config:
    """The config of a file (`find_config`), whose folder's parent it may import from ("from configs import common").

    `changes` are dotted keys with their values as text, in Python's notation or as bare words: {"data.source": "synthetic"}; all of
    data.mix is changed by a dict.

    Raises:
        InputError: there is no such file, it has no `get_config`, or a change names an unknown key or gives another type of value.
    """
    path = find_config(path)
    root = str(path.resolve().parent.parent)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path}: is not a Python file. Give a config whose name ends in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, root)
    try:
        spec.loader.exec_module(module)
        get_config = getattr(module, "get_config", None)
        if get_config is None:
            raise InputError(f"{path}: has no get_config(). Start from a file of configs/.")
        config = get_config()
    except (SyntaxError, ImportError, NameError, KeyError, AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{path}: {type(error).__name__}: {error}. Compare it with configs/common.py.") from error
    finally:
        sys.path.remove(root)
    for key, text in changes.items():
        _set_key(config, key, text)
    return config


def restore_config(recorded: Mapping[str, Any]) -> Config:
    """A config as a run recorded it, with the defaults of keys that a later version added: the run behaved like them."""
    defaults = read_config(Path("common"), {}).to_dict()
    groups = {name: value | recorded.get(name, {}) for name, value in defaults.items() if isinstance(value, dict)}
    return ConfigDict(defaults | dict(recorded) | groups)


def flatten(config: Config) -> dict[str, Any]:
    """Dotted key -> value, as JSON has them: a tuple becomes a list, in other values too."""

    def walk(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in tree.items():
            if isinstance(value, dict):
                yield from walk(value, f"{prefix}{key}.")
            else:
                yield prefix + key, value

    return dict(walk(json.loads(json.dumps(config.to_dict())), ""))


def _set_key(config: Config, key: str, text: str) -> None:
    *parents, last = key.split(".")
    node = config
    for name in parents:
        node = node[name] if isinstance(node, ConfigDict) and name in node else None
    if not isinstance(node, ConfigDict) or last not in node:
        raise InputError(f"{key}: there is no such key. configs/common.py lists all.")
    value, old = _value(text), node[last]
    if isinstance(old, ConfigDict) and not (key == MIX and isinstance(value, dict)):
        remedy = "Change one of these, or give a dict." if key == MIX else "Change one of these."
        raise InputError(f"{key}={text}: {key} is a group of keys ({', '.join(old)}). {remedy}")
    with input_errors(lambda _: f"{key}={text}: {last} is {old!r} in the config; give another {type(old).__name__}.", TypeError):
        if value is None or not _same_elements(value, old):
            raise TypeError  # ConfigDict takes None for anything, and looks at no element
        node[last] = value


def _same_elements(value: Any, old: Any) -> bool:
    """Whether the elements of a tuple are all texts, or all numbers, as in the one that it replaces; an empty one says nothing."""
    kinds = [kind for kind in (str, (int, float)) if isinstance(old, tuple) and old and all(isinstance(one, kind) for one in old)]
    return not kinds or not isinstance(value, tuple | list) or all(isinstance(one, kinds[0]) for one in value)


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
