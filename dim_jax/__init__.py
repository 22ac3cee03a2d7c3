"""Draw-In-Mind (arXiv 2509.01986) in JAX: a designer writes a blueprint, a painter paints it.

The names of `__all__` are the public API; docs/api/listing.md has their signatures. Each is loaded when it is asked for, so that the
command starts without JAX.
"""

import ast
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

try:
    __version__ = version("dim_jax")
except PackageNotFoundError:  # used from a source tree that is not installed
    __version__ = "0+source"

# Name -> module, from the file in which type checkers find them too.
_MODULES = {
    alias.name: str(node.module)
    for node in ast.parse(Path(__file__).with_suffix(".pyi").read_text()).body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}
__all__ = ["__version__", *_MODULES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
