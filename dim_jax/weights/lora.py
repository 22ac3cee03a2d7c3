"""A LoRA apart from any model: pairs of factors by the layer that they belong to, and what a model gets of one or of several.

A layer's kernel (d, f) becomes kernel + scale a b, with a (d, rank) and b (rank, f) (arXiv 2106.09685). Formats that keep queries, keys and
values apart have factors for each of them, where our kernel has them joined: `join_projections` and `split_projections` convert.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from dim_jax.errors import check, listed
from dim_jax.models.lora import FACTORS
from dim_jax.weights import dim, sana
from dim_jax.weights.arrays import same_bits
from dim_jax.weights.table import LINEAR, POINTWISE, Row, Shape, add_prefix

PARTS = ("connector", "sana")  # parts of the model that adapters may be in
DIM_ROWS = tuple(row for row in dim.ROWS if row.jax.startswith(tuple(f"{part}." for part in PARTS)))
DIFFUSERS_ROWS = add_prefix(sana.DIFFUSERS_ROWS, "", "sana.")


class AdapterTarget(NamedTuple):
    """What a pair belongs to: a linear layer of ours ("sana.blocks.attn.qkv"), its block (None: not stacked), and which of `parts` parts
    that are joined in our kernel."""

    layer: str
    block: int | None
    part: int = 0
    parts: int = 1

    def __str__(self) -> str:
        return f"{self.layer}{'' if self.block is None else f' of block {self.block}'}"


class LoraFactors(NamedTuple):
    """The two factors of a change of a kernel, and what their product is scaled by."""

    a: Float[np.ndarray, "d rank"]
    b: Float[np.ndarray, "rank f"]
    scale: float

    @property
    def rank(self) -> int:
        return self.a.shape[1]


@dataclass(frozen=True)
class Lora:
    """Pairs by slot, and where they come from, for messages."""

    where: str
    pairs: Mapping[AdapterTarget, LoraFactors]


def linear_rows(rows: Iterable[Row]) -> dict[str, Row]:
    """Those rows of a table that are kernels of linear layers or 1 x 1 convolutions, by our name of the layer."""
    return {row.jax.removesuffix(".kernel"): row for row in rows if row.transform in (LINEAR, POINTWISE) and row.jax.endswith(".kernel")}


LAYERS = linear_rows(DIM_ROWS)


def kernels(shapes: Mapping[str, Shape], parts: Iterable[str] = PARTS) -> dict[str, Shape]:
    """Layer -> shape of its kernel, of all layers in these parts of a model that can have adapters."""
    kernel_shapes = {layer: shapes[f"{layer}.kernel"] for layer in LAYERS if f"{layer}.kernel" in shapes}
    return {layer: shape for layer, shape in kernel_shapes.items() if layer.split(".")[0] in parts}


def factor_shapes(kernels: Mapping[str, Shape], rank: int) -> dict[str, Shape]:
    """Path -> shape of the factors that layers with these kernels get."""
    shapes: dict[str, Shape] = {}
    for layer, (*stack, d, f) in kernels.items():
        shapes |= {f"{layer}.lora_a": (*stack, d, rank), f"{layer}.lora_b": (*stack, rank, f)}
    return shapes


def from_factors(where: str, factors: Mapping[str, np.ndarray], scale: float) -> Lora:
    """The LoRA of a model's factors by path (`models.lora`), stacked over blocks as its kernels are."""
    pairs: dict[AdapterTarget, LoraFactors] = {}
    for layer in dict.fromkeys(path.rpartition(".")[0] for path in factors):
        a, b = (factors[f"{layer}.{name}"] for name in FACTORS)
        for block in range(len(a)) if a.ndim == 3 else (None,):
            pairs[AdapterTarget(layer, block)] = LoraFactors(a, b, scale) if block is None else LoraFactors(a[block], b[block], scale)
    return Lora(where, pairs)


def join_projections(lora: Lora) -> Lora:
    """The same change of every kernel, with one pair a kernel.

    Parts with the same `a` share it; else the factors lie side by side, each for the columns of its part, and their ranks add up.
    """
    groups: dict[AdapterTarget, dict[int, LoraFactors]] = {}
    for slot, pair in lora.pairs.items():
        groups.setdefault(AdapterTarget(slot.layer, slot.block, parts=slot.parts), {})[slot.part] = pair
    return Lora(lora.where, {AdapterTarget(slot.layer, slot.block): _join(group, slot.parts) for slot, group in groups.items()})


def _join(pairs: Mapping[int, LoraFactors], parts: int) -> LoraFactors:
    first = next(iter(pairs.values()))
    same_scale = all(pair.scale == first.scale for pair in pairs.values())
    if len(pairs) == parts and same_scale and all(same_bits(*map(np.ascontiguousarray, (pair.a, first.a))) for pair in pairs.values()):
        return LoraFactors(first.a, np.concatenate([pairs[part].b for part in range(parts)], 1), first.scale)
    f, rows = first.b.shape[1], list[np.ndarray]()
    for part, pair in sorted(pairs.items()):
        rows.append(np.zeros((pair.rank, parts * f), pair.b.dtype if same_scale else np.float32))
        rows[-1][:, part * f : (part + 1) * f] = pair.b if same_scale else pair.scale * pair.b.astype(np.float32)
    return LoraFactors(
        np.concatenate([pairs[part].a for part in sorted(pairs)], 1), np.concatenate(rows), first.scale if same_scale else 1.0
    )


def split_projections(lora: Lora, rows: Mapping[str, Row]) -> Lora:
    """The same change of every kernel, with a pair for each part that the rows of a format (`linear_rows`) keep by itself.

    The parts share `a`; what of it adds nothing to a part, because those rows of `b` are zero, is left out there.
    """
    pairs: dict[AdapterTarget, LoraFactors] = {}
    for slot, pair in lora.pairs.items():
        parts = len(rows[slot.layer].parts)
        if parts == slot.parts:
            pairs[slot] = pair
            continue
        for part, b in enumerate(np.split(pair.b, parts, 1)):
            used = (b != 0).any(1) if (pair.b != 0).any() else np.ones(pair.rank, bool)  # all of a fresh one
            if used.any():
                pairs[AdapterTarget(slot.layer, slot.block, part, parts)] = LoraFactors(pair.a[:, used], b[used], pair.scale)
    return Lora(lora.where, pairs)


def sum_loras(loras: Sequence[tuple[Lora, float]], shapes: Mapping[str, Shape]) -> dict[str, np.ndarray]:
    """The factors of a model of these shapes (path -> array, as `factor_shapes` names them) that add up to all `loras`, each times its
    weight. Float32, scales in `lora_b`; ranks lie side by side, and those of blocks that have less are filled up with zeros.

    Raises:
        InputError: a LoRA is of a model with other layers; names them.
    """
    groups: dict[str, dict[int | None, list[LoraFactors]]] = {}
    kernel_shapes = kernels(shapes)
    for lora, weight in loras:
        mismatched = list[str]()
        for slot, (a, b, scale) in join_projections(lora).pairs.items():
            *stack, d, f = kernel_shapes.get(slot.layer, (0, 0))
            if (len(a), b.shape[1]) != (d, f) or (slot.block is None) != (not stack) or not (slot.block or 0) < (*stack, 1)[0]:
                here = f"here it is {kernel_shapes[slot.layer]}" if slot.layer in kernel_shapes else "there is none here"
                mismatched.append(f"{slot} is ({len(a)}, {b.shape[1]}), {here}")
            pair = LoraFactors(a.astype(np.float32), b.astype(np.float32) * np.float32(scale * weight), 1.0)
            groups.setdefault(slot.layer, {}).setdefault(slot.block, []).append(pair)
        check(not mismatched, f"{lora.where}: is a LoRA of another model: {listed(mismatched, '; ', limit=3)}. Give one of this model.")
    factors: dict[str, np.ndarray] = {}
    for layer, blocks in groups.items():
        rank = max(sum(pair.rank for pair in pairs) for pairs in blocks.values())
        for path, shape in factor_shapes({layer: shapes[f"{layer}.kernel"]}, rank).items():
            factors[path] = np.zeros(shape, np.float32)
        for block, pairs in blocks.items():
            index: tuple = () if block is None else (block,)
            a, b = np.concatenate([pair.a for pair in pairs], 1), np.concatenate([pair.b for pair in pairs])
            factors[f"{layer}.lora_a"][(*index, slice(None), slice(a.shape[1]))] = a
            factors[f"{layer}.lora_b"][(*index, slice(len(b)))] = b
    return factors
