"""The table between published tensors and our parameters, read in both directions.

A row has the published name, our path and the layout change. The table is bijective: every tensor of a model has exactly one row, so a
missing or forgotten tensor is an error and no weight stays random.
"""

import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dim_jax.weights.arrays import contiguous, copy_into, empty

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Transform:
    """A layout change: drop the published tensor's axes `squeeze` (all of size 1), then transpose by `axes`."""

    axes: tuple[int, ...] | None = None  # None: unchanged, for any rank
    squeeze: tuple[int, ...] = ()

    def from_hf(self, tensor: np.ndarray) -> np.ndarray:
        """A published tensor in our layout (a view)."""
        return tensor if self.axes is None else np.squeeze(tensor, self.squeeze).transpose(self.axes)

    def to_hf(self, tensor: np.ndarray) -> np.ndarray:
        """One of our tensors in the published layout (a view)."""
        return tensor if self.axes is None else np.expand_dims(tensor.transpose(np.argsort(self.axes)), self.squeeze)

    def hf_shape(self, shape: Shape) -> Shape:
        """The published shape of a tensor that has this shape in our layout."""
        return self.to_hf(np.broadcast_to(np.uint8(0), shape)).shape


LAYERS_AT_ONCE = 16  # copied into their stack; what they are read from may be in memory

SAME = Transform()
LINEAR = Transform((1, 0))  # (out, in) <-> (in, out)
CONV = Transform((2, 3, 1, 0))  # (out, in, kh, kw) <-> (kh, kw, in, out)
POINTWISE = Transform((1, 0), squeeze=(2, 3))  # 1 x 1 convolution (out, in, 1, 1) <-> (in, out)
DEPTHWISE = Transform((1, 2, 0), squeeze=(1,))  # (d, 1, kh, kw) <-> (kh, kw, d)
PATCH_3D = Transform((1, 2, 3, 4, 0))  # (out, c, t, kh, kw) <-> (c, t, kh, kw, out)


@dataclass(frozen=True)
class Row:
    """`hf` (published name; several are concatenated on their first axis), `jax` (our path) and the layout change.

    A `*` stands for a layer number. One that stands in `hf` but not in `jax` is stacked on our axis 0.
    """

    hf: str | tuple[str, ...]
    jax: str
    transform: Transform

    @property
    def parts(self) -> tuple[str, ...]:
        return (self.hf,) if isinstance(self.hf, str) else self.hf


class TensorMapping(NamedTuple):
    """The place of a published tensor in ours: path, layer on axis 0 (None: not stacked), and number among `parts` parts."""

    path: str
    layer: int | None
    part: int
    parts: int
    transform: Transform
    shape: Shape  # of the published tensor


def add_prefix(rows: Iterable[Row], hf: str, jax: str) -> tuple[Row, ...]:
    """The same rows with prefixes before the published names and before our paths."""
    return tuple(replace(row, hf=tuple(hf + part for part in row.parts), jax=jax + row.jax) for row in rows)


def kernel_and_bias(hf: str, jax: str, transform: Transform = LINEAR) -> tuple[Row, Row]:
    """The rows of a layer's kernel and bias."""
    return Row(f"{hf}.weight", f"{jax}.kernel", transform), Row(f"{hf}.bias", f"{jax}.bias", SAME)


def tensor_mappings(rows: Iterable[Row], shapes: Mapping[str, Shape]) -> dict[str, TensorMapping]:
    """Published name -> place, for a model whose tensors have these paths and shapes.

    Raises:
        LookupError: one of our paths has no row or several, or a published name is used twice: the table itself is wrong.
    """
    patterns = [(row, re.compile(re.escape(row.jax).replace(r"\*", r"(\d+)"))) for row in rows]
    mappings: dict[str, TensorMapping] = {}
    for path, shape in shapes.items():
        hits = [(row, match.groups()) for row, pattern in patterns if (match := pattern.fullmatch(path))]
        if len(hits) != 1:
            raise LookupError(f"{path} {shape}: {len(hits)} rows of the weight table name it, expected exactly 1.")
        row, numbers = hits[0]
        stacked = row.parts[0].count("*") > len(numbers)
        first, *rest = row.transform.hf_shape(shape[1:] if stacked else shape)
        for layer in range(shape[0]) if stacked else (None,):
            for part, name in enumerate(row.parts):
                for number in numbers if layer is None else (layer, *numbers):
                    name = name.replace("*", str(number), 1)
                if name in mappings:
                    raise LookupError(f"{name}: {path} and {mappings[name].path} both claim it in the weight table.")
                mappings[name] = TensorMapping(path, layer, part, len(row.parts), row.transform, (first // len(row.parts), *rest))
    return mappings


def by_path(mappings: Mapping[str, TensorMapping]) -> dict[str, dict[str, TensorMapping]]:
    """The mappings of each of our paths."""
    groups: dict[str, dict[str, TensorMapping]] = {}
    for name, mapping in mappings.items():
        groups.setdefault(mapping.path, {})[name] = mapping
    return groups


def from_hf(
    mappings: Mapping[str, TensorMapping], read: Callable[[str], np.ndarray], scratch: Path | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """Our tensors one after the other, each assembled from `read(name)` of its published parts; only one is in memory at a time.
    Its layers are copied in threads.

    Large stacked ones are assembled in a nameless file in the folder `scratch`, if given, instead of in memory.
    """
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for path, members in by_path(mappings).items():
            stacked, parts, copies = None, [], deque[Future]()
            for name, mapping in members.items():
                parts.append(read(name))
                if len(parts) < mapping.parts:
                    continue
                tensor = mapping.transform.from_hf(parts[0] if mapping.parts == 1 else np.concatenate(parts))
                parts = []
                if mapping.layer is None:
                    yield path, contiguous(tensor)
                else:
                    if stacked is None:
                        stacked = empty((len(members) // mapping.parts, *tensor.shape), tensor.dtype, scratch)
                    copies.append(threads.submit(copy_into, stacked[mapping.layer, ...], tensor))
                    if len(copies) > LAYERS_AT_ONCE:
                        copies.popleft().result()
                del tensor
            for copy in copies:
                copy.result()
            if stacked is not None:
                yield path, stacked


def to_hf(mappings: Mapping[str, TensorMapping], read: Callable[[str], np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Published tensors one after the other, each cut (as a view) from `read(path)` of ours."""
    for path, members in by_path(mappings).items():
        tensor = read(path)
        for name, mapping in members.items():
            joined = mapping.transform.to_hf(tensor if mapping.layer is None else tensor[mapping.layer])
            size = mapping.shape[0] if mapping.shape else 0
            yield name, joined if mapping.parts == 1 else joined[mapping.part * size : (mapping.part + 1) * size]
