"""One table of rows says where every published tensor lives in our modules; it is read in both directions.

A row names the published tensor, our path and the kind of layout change. The table is bijective: every tensor of a model has
exactly one row, so that a missing or forgotten tensor is an error and never a silently random weight.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dim_jax.weights.arrays import contiguous, copy_into, empty

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Transform:
    """A layout change: drop the published tensor's axes `squeeze` (all of size 1), then transpose by `axes`."""

    axes: tuple[int, ...] | None = None  # None: as it is, whatever the rank
    squeeze: tuple[int, ...] = ()

    def from_hf(self, theirs: np.ndarray) -> np.ndarray:
        """The published layout as ours (a view)."""
        return theirs if self.axes is None else np.squeeze(theirs, self.squeeze).transpose(self.axes)

    def to_hf(self, ours: np.ndarray) -> np.ndarray:
        """Our layout as the published one (a view)."""
        return ours if self.axes is None else np.expand_dims(ours.transpose(np.argsort(self.axes)), self.squeeze)

    def shape_of_theirs(self, ours: Shape) -> Shape:
        """The published shape of a tensor whose shape in our layout is `ours`."""
        return self.to_hf(np.broadcast_to(np.uint8(0), ours)).shape


SAME = Transform()
LINEAR = Transform((1, 0))  # (out, in) <-> (in, out)
CONV = Transform((2, 3, 1, 0))  # (out, in, kh, kw) <-> (kh, kw, in, out)
POINTWISE = Transform((1, 0), squeeze=(2, 3))  # 1 x 1 convolution (out, in, 1, 1) <-> (in, out)
DEPTHWISE = Transform((1, 2, 0), squeeze=(1,))  # (d, 1, kh, kw) <-> (kh, kw, d)
PATCH_3D = Transform((1, 2, 3, 4, 0))  # (out, c, t, kh, kw) <-> (c, t, kh, kw, out)


@dataclass(frozen=True)
class Row:
    """`theirs` (published name; several are concatenated on their first axis), `ours` (path) and the kind of layout change.

    A `*` stands for a layer number. One that stands in `theirs` but not in `ours` is stacked on our axis 0.
    """

    theirs: str | tuple[str, ...]
    ours: str
    kind: Transform

    @property
    def parts(self) -> tuple[str, ...]:
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs


class TensorMapping(NamedTuple):
    """Where one published tensor lives: our path, the layer on axis 0 (None: not stacked), and which of `parts` parts."""

    path: str
    layer: int | None
    part: int
    parts: int
    kind: Transform
    shape: Shape  # of the published tensor


def prefixed(rows: Iterable[Row], theirs: str, ours: str) -> tuple[Row, ...]:
    """The same rows with prefixes put before the published names and before our paths."""
    return tuple(replace(row, theirs=tuple(theirs + part for part in row.parts), ours=ours + row.ours) for row in rows)


def _pattern(name: str) -> re.Pattern:
    return re.compile(re.escape(name).replace(r"\*", r"(\d+)"))


def tensor_mappings(rows: Iterable[Row], ours: Mapping[str, Shape]) -> dict[str, TensorMapping]:
    """Every published name of a model whose tensors have the paths and shapes `ours`, with the slot it fills.

    Raises:
        LookupError: one of our paths has no row or several, or a published name is used twice: the table itself is wrong.
    """
    patterns = [(row, _pattern(row.ours)) for row in rows]
    found: dict[str, TensorMapping] = {}
    for path, shape in ours.items():
        hits = [(row, match.groups()) for row, pattern in patterns if (match := pattern.fullmatch(path))]
        if len(hits) != 1:
            raise LookupError(f"{path} {shape}: {len(hits)} rows of the weight table name it, expected exactly 1.")
        row, numbers = hits[0]
        stacked = row.parts[0].count("*") > len(numbers)
        first, *rest = row.kind.shape_of_theirs(shape[1:] if stacked else shape)
        for layer in range(shape[0]) if stacked else (None,):
            for part, name in enumerate(row.parts):
                for number in numbers if layer is None else (layer, *numbers):
                    name = name.replace("*", str(number), 1)
                if name in found:
                    raise LookupError(f"{name}: {path} and {found[name].path} both claim it in the weight table.")
                found[name] = TensorMapping(path, layer, part, len(row.parts), row.kind, (first // len(row.parts), *rest))
    return found


def from_hf(
    slots: Mapping[str, TensorMapping], read: Callable[[str], np.ndarray], scratch: Path | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """Our tensors one after the other, each put together from `read(name)` of its published parts; only one is held at a time.

    Large stacked ones are put together in a nameless file in the folder `scratch`, if it is given, instead of in memory.
    """
    names: dict[str, list[str]] = {}
    for name, slot in slots.items():
        names.setdefault(slot.path, []).append(name)
    for path, members in names.items():
        layers: dict[int | None, list[np.ndarray]] = {}
        stacked = None
        for name in members:
            slot = slots[name]
            parts = layers.setdefault(slot.layer, [])
            parts.append(read(name))
            if len(parts) < slot.parts:
                continue
            whole = parts[0] if slot.parts == 1 else np.concatenate(parts)
            layers[slot.layer] = []
            tensor = slot.kind.from_hf(whole)
            if slot.layer is None:
                yield path, contiguous(tensor)
            else:
                if stacked is None:
                    stacked = empty((len(members) // slot.parts, *tensor.shape), tensor.dtype, scratch)
                copy_into(stacked[slot.layer, ...], tensor)
        if stacked is not None:
            yield path, stacked


def to_hf(slots: Mapping[str, TensorMapping], read: Callable[[str], np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Published tensors one after the other, each cut (as a view) from `read(path)` of ours."""
    path, ours = None, np.empty(0)
    for name, slot in slots.items():
        if slot.path != path:
            path, ours = slot.path, read(slot.path)
        whole = slot.kind.to_hf(ours if slot.layer is None else ours[slot.layer])
        size = slot.shape[0] if slot.shape else 0
        yield name, whole if slot.parts == 1 else whole[slot.part * size : (slot.part + 1) * size]
