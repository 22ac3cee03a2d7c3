"""Objects that a package finds by file: one module each, so that adding one is adding a file."""

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from dim_jax.errors import check


def load_plugins(package: str, attribute: str) -> dict[str, Any]:
    """Each module's `attribute` by the module's name; modules without it are helpers of the others."""
    paths = importlib.import_module(package).__path__
    modules = {info.name: importlib.import_module(f"{package}.{info.name}") for info in pkgutil.iter_modules(paths)}
    return {name: getattr(module, attribute) for name, module in modules.items() if hasattr(module, attribute)}


def plugin(plugins: Mapping[str, Any], name: str, noun: str) -> Any:
    """The plugin of a name.

    Raises:
        InputError: there is none; the message lists the names.
    """
    check(name in plugins, f'There is no {noun} "{name}". There are: {", ".join(sorted(plugins))}.')
    return plugins[name]
