"""Lazy mappings from names to tensors; every format is opened as one."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from dim_jax.checkpoint import TensorInfo

Reader = Callable[[Sequence[str], Path | None], Iterator[tuple[str, np.ndarray]]]


class LazyTensors(Mapping[str, TensorInfo]):
    """Name -> shape and dtype of each tensor, from headers; `read` reads the data, one tensor after the other.

    `reader` gets names, and yields each name with its tensor, in this order. If it gets a folder, it keeps large tensors that it assembles
    in files there instead of in memory.
    """

    def __init__(self, infos: Mapping[str, TensorInfo], reader: Reader):
        self._infos, self._reader = infos, reader

    def __getitem__(self, name: str) -> TensorInfo:
        return self._infos[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def __len__(self) -> int:
        return len(self._infos)

    @property
    def nbytes(self) -> int:
        """Size of all the data."""
        return sum(info.nbytes for info in self.values())

    def read(self, names: Iterable[str] | None = None, scratch: Path | None = None) -> Iterator[tuple[str, np.ndarray]]:
        """These tensors in this order, or all."""
        return self._reader(list(self if names is None else names), scratch)

    def load(self, name: str) -> np.ndarray:
        """One tensor."""
        return next(self.read([name]))[1]


def from_loader(infos: Mapping[str, TensorInfo], load: Callable[[str], np.ndarray]) -> LazyTensors:
    """Tensors that are loaded one by one."""
    return LazyTensors(infos, lambda names, scratch: ((name, load(name)) for name in names))


def merge(parts: Iterable[tuple[str, LazyTensors]]) -> LazyTensors:
    """Several mappings as one, each with a prefix before its names."""
    homes = {prefix + name: (tensors, name) for prefix, tensors in parts for name in tensors}

    def read(names: Sequence[str], scratch: Path | None) -> Iterator[tuple[str, np.ndarray]]:
        for _, group in groupby(names, lambda name: id(homes[name][0])):
            group_names = list(group)
            stream = homes[group_names[0]][0].read([homes[name][1] for name in group_names], scratch)
            for name in group_names:
                yield name, next(stream)[1]
            next(stream, None)  # to its end, where it may raise an error

    return LazyTensors({name: tensors[inner_name] for name, (tensors, inner_name) in homes.items()}, read)
