"""What the tests of LoRAs share: random ones of the tiny checkpoint, and a short run that trains one."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from dim_jax.datasets.layouts.pairs import Pair, Picture, encode_webp, write_pairs
from dim_jax.weights.lora import AdapterTarget, Lora, LoraFactors, factor_shapes, from_factors, kernels
from dim_jax.weights.lora_files import write_lora
from dim_jax.weights.opening import open_weights
from dim_jax.weights.table import Shape
from tests.painter_fixtures import dim, picture, tiny_checkpoint


def random_lora(shapes: dict[str, Shape], seed: int = 0, *, rank: int = 3, layers: Iterable[str] = (), scale: float = 2.0) -> Lora:
    """Random factors for these layers, or all, that change what a model computes by about as much as it is."""
    rng, adapted = np.random.default_rng(seed), {name: shape for name, shape in kernels(shapes).items() if not layers or name in layers}
    factors = {}
    for path, shape in factor_shapes(adapted, rank).items():
        factors[path] = rng.normal(size=shape).astype(np.float32) / np.float32(3 * shape[-2] ** 0.5)
    return from_factors("a random LoRA", factors, scale)


def base_and_lora(folder: Path, seed: int = 0, **options) -> tuple[Path, Path]:
    """The tiny checkpoint and a random LoRA of it, as folders."""
    base, place = folder / "base", folder / f"lora{seed}"
    if not base.exists():
        tiny_checkpoint(base)
    write_lora(place, random_lora(open_weights(base).config.shapes(), seed, **options), "dim")
    return base, place


def prepared_pairs(folder: Path) -> None:
    """Six pairs of random pictures, of which two are held out, in `folder`/data as training reads them."""
    (folder / "raw").mkdir()
    pictures = [
        Picture("random", str(i), "a thing", "test" if i >= 8 else "train", ("a thing",), encode_webp(np.asarray(picture(32, 32, i))))
        for i in range(12)
    ]
    write_pairs(folder / "raw", pictures, [Pair(i, i + 1, "style", ("red",), "red") for i in range(0, 12, 2)])
    code, text = dim("prepare", str(folder / "raw"), str(folder / "data"))
    assert code == 0, text


def same(a: Lora, b: Lora) -> bool:
    """Whether two have the same factors, to the bit, and the same scales."""
    return a.pairs.keys() == b.pairs.keys() and all(_same(a.pairs[slot], b.pairs[slot]) for slot in a.pairs)


def _same(a: LoraFactors, b: LoraFactors) -> bool:
    return a.scale == b.scale and all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in ((a.a, b.a), (a.b, b.b)))


def changes(lora: Lora) -> dict[AdapterTarget, np.ndarray]:
    """What is added to each kernel, in float64."""
    return {slot: pair.scale * pair.a.astype(np.float64) @ pair.b.astype(np.float64) for slot, pair in lora.pairs.items()}
