"""A folder of goldens as the checks see it: every missing file or key is named, and what nobody read is known."""

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

Changes = Mapping[str, Mapping[str, np.ndarray]]  # file -> tensor -> its value instead of the file's


class Group(NamedTuple):
    """Ours beside the golden; `abs(ours - golden)` is at most `atol + rtol * abs(golden)` everywhere."""

    name: str
    ours: np.ndarray
    golden: np.ndarray
    rtol: float
    atol: float


class MissingError(KeyError):
    """A file of the folder lacks a key or a tensor."""

    def __str__(self) -> str:
        return self.args[0]


class Facts(dict):
    """An object of a JSON file that says which file lacks a key."""

    def __init__(self, values: dict, file: str):
        super().__init__(values)
        self.file = file

    def __missing__(self, key: str):
        raise MissingError(f"{self.file}: missing key {key!r}")


class Tensors(Mapping[str, np.ndarray]):
    """The tensors of a file whose names start with `prefix` (left out of the keys); notes in `read` which were looked at."""

    def __init__(self, file: str, tensors: Mapping[str, np.ndarray], prefix: str = "", read: set[str] | None = None):
        self.file, self.tensors, self.prefix = file, tensors, prefix
        self.read: set[str] = set() if read is None else read

    def __getitem__(self, key: str) -> np.ndarray:
        name = self.prefix + key
        if name not in self.tensors:
            raise MissingError(f"{self.file}: missing tensor {name!r}")
        self.read.add(name)
        return self.tensors[name]

    def __contains__(self, key: object) -> bool:
        return f"{self.prefix}{key}" in self.tensors

    def __iter__(self) -> Iterator[str]:
        return (name.removeprefix(self.prefix) for name in sorted(self.tensors) if name.startswith(self.prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def under(self, prefix: str) -> "Tensors":
        """The tensors after one more prefix."""
        return Tensors(self.file, self.tensors, self.prefix + prefix, self.read)

    def pass_over(self, key: str) -> None:
        """Count a tensor, if there is one, as read: nothing depends on it, and whoever calls this says why."""
        self.read.add(self.prefix + key)

    def cases(self) -> list[str]:
        """The numbers before the first dot, in order.

        Raises:
            MissingError: there is none.
        """
        found = sorted({key.split(".")[0] for key in self}, key=lambda case: (len(case), case))
        if not found:
            raise MissingError(f"{self.file}: no case in it")
        return found


class Goldens:
    """One folder made like tests/goldens."""

    def __init__(self, folder: Path, changes: Changes | None = None):
        self.folder, self.changes = folder, changes or {}
        self.opened: dict[str, Tensors] = {}

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def json(self, name: str) -> Facts:
        """The object in a JSON file."""
        return json.loads(self._existing(name).read_text(), object_hook=lambda values: Facts(values, name))

    def tensors(self, name: str) -> Tensors:
        """The tensors of a safetensors file, with the changes."""
        if name not in self.opened:
            path = self._existing(name)
            self.opened[name] = Tensors(name, {**_load(path, path.stat().st_mtime_ns), **self.changes.get(name, {})})
        return self.opened[name]

    def unread(self) -> list[tuple[str, str]]:
        """File and name of every tensor of an opened file that nobody looked at."""
        return [(file, name) for file, tensors in self.opened.items() for name in tensors if name not in tensors.read]

    def _existing(self, name: str) -> Path:
        path = self.folder / name
        if not path.is_file():
            raise MissingError(f"{name}: missing file")
        return path


@lru_cache(maxsize=64)
def _load(path: Path, modified: int) -> dict[str, np.ndarray]:
    del modified  # a file that was written anew is read anew
    return load_file(path)


def as_goldens(folder: "Goldens | Path") -> Goldens:
    """The folder, wherever it came as a path."""
    return folder if isinstance(folder, Goldens) else Goldens(folder)


def nhwc(x: np.ndarray) -> jax.Array:
    """Channels last, as ours are."""
    return jnp.asarray(np.moveaxis(x, -3, -1))


def nchw(x: np.ndarray) -> np.ndarray:
    """Channels first, as PyTorch's are."""
    return np.moveaxis(np.asarray(x), -1, -3)
