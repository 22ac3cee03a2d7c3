"""Whether an accelerator computes what the CPU does: goldens, a nano edit, a nano training step, products with their epilogues.

    python benchmarks/device_parity.py [--only edit --only step]            # on an NVIDIA GPU
    JAX_PLATFORMS=tpu,cpu python benchmarks/device_parity.py

Errors are root mean squares in parts of the signal, by part: of float32 on the accelerator against float32 on the CPU (at most 1e-4;
latents after 30 guided steps and the picture 1e-3), and of bfloat16, which runs the accelerator's own kernels, against the same. The
goldens are what PyTorch computed; each has its own tolerance. The exit status is 1 if anything is over its bound.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

# The accelerator first, so that it is JAX's default; the CPU beside it.
os.environ.setdefault("JAX_PLATFORMS", "cuda,cpu")
sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dim_jax.models.dc_ae_config import DCAEConfig
from dim_jax.models.dim import DimConfig
from dim_jax.models.module import parameters, with_parameters
from dim_jax.models.qwen import QwenConfig
from dim_jax.models.sana_config import SanaConfig
from dim_jax.settings import read_settings
from dim_jax.training import optim
from dim_jax.training.losses import Features, painter_loss
from dim_jax.training.objectives import abstract_model
from dim_jax.verify.case import make_case, make_settings
from dim_jax.verify.jax_stages import JaxStages
from dim_jax.verify.stages import STAGES
from dim_jax.weights.bundled import bundled_checkpoint
from dim_jax.weights.loading import open_dim
from dim_jax.weights.model_config import ModelConfig
from tests.parity import check_goldens

Bounds = dict[str, dict[str, float]]  # part -> dtype -> largest error
EDIT: Bounds = {name: {"float32": stage.float32, "bfloat16": stage.bfloat16} for name, stage in STAGES.items()}
STEP: Bounds = {name: {"float32": 1e-4, "bfloat16": bound} for name, bound in (("loss", 0.01), ("gradient", 0.05), ("update", 0.05))}


class Line(NamedTuple):
    part: str
    dtype: str
    error: float
    bound: float


def error(actual: Any, expected: Any) -> float:
    actual, expected = (np.asarray(x, np.float64) for x in (actual, expected))
    return float(np.sqrt(np.mean((actual - expected) ** 2)) / max(np.sqrt(np.mean(expected**2)), 1e-30))


def edit_stages(dtype: str) -> dict[str, np.ndarray]:
    """Every stage of a nano edit with the bundled weights, each from the one before as this device computed it."""
    weights, config, processor = open_dim(str(bundled_checkpoint()), None)
    case = make_case(config, processor, make_settings(read_settings(weights.settings), processor, None))
    tensors, ours = {path: np.asarray(tensor, np.float32) for path, tensor in weights.stream()}, JaxStages(case, dtype)
    actual = ours.encoder(tensors)
    return actual | ours.painter(tensors, actual["encoder states"])


def training_step(dtype: str) -> dict[str, np.ndarray]:
    """Loss, gradient and update of connector and SANA at nano size, on random features; parameters are float32."""
    config = DimConfig(QwenConfig.nano(), SanaConfig.nano(edit=True), DCAEConfig.nano())
    abstract: Any = abstract_model(ModelConfig(config.encoder, config.sana), ("connector", "sana"), jnp.dtype(dtype))
    rng = np.random.default_rng(0)
    params = {path: jnp.asarray(0.05 * rng.standard_normal(leaf.shape), jnp.float32) for path, leaf in parameters(abstract).items()}
    hidden, cells = rng.standard_normal((4, 64, config.encoder.text.hidden_size)), rng.standard_normal((2, 4, 8, 8, 16))
    mask = np.arange(64) < np.array([[64], [50], [9], [1]])
    features = Features(*map(jnp.asarray, (hidden.astype(np.float32), mask, *cells.astype(np.float32))))
    optimizer = optim.clipped_optimizer(1e-4, weight_decay=0.01, clip_global_norm=1.0)

    @jax.jit
    def step(params: Any, features: Any) -> tuple[Any, Any, Any]:
        def mean(params: Any) -> Any:
            model, options = with_parameters(abstract, params), {"shift": 3.0, "draw": "logit_normal", "condition_dropout": 0.1}
            return painter_loss(model.connector, model.sana, features, jax.random.key(0), **options)[0]

        value, gradient = jax.value_and_grad(mean)(params)
        clipped = jax.tree.map(lambda x: x / jnp.maximum(1, optax.tree.norm(gradient)), gradient)
        change, _ = optimizer.update(gradient, optimizer.init(params), params)
        return value, clipped, change

    value, gradient, change = step(params, features)
    # AdamW's first change is nearly the sign of the gradient: where that is rounding alone, so is the sign. So changes count by gradient.
    flat = [np.concatenate([np.ravel(tree[path]) for path in sorted(tree)]) for tree in (gradient, change)]
    weighed = flat[1] * np.abs(flat[0]) / np.abs(flat[0]).max()
    return {"loss": np.asarray(value), "gradient": flat[0], "update": weighed}


def compared(compute: Callable[[str], dict[str, np.ndarray]], name: str, bounds: Bounds) -> Iterator[Line]:
    with jax.default_device(jax.devices("cpu")[0]):
        expected = compute("float32")
    for dtype in ("float32", "bfloat16"):
        for part, actual in compute(dtype).items():
            yield Line(f"{name}: {part}", dtype, error(actual, expected[part]), bounds[part][dtype])


def epilogues() -> Iterator[Line]:
    """Products with what a compiler may fuse after them, many of them square, where a row is as long as a column. openxla#46110 and
    #46897 tell of silent miscompilations of such fusions."""
    rng = np.random.default_rng(0)
    after: dict[str, Callable[..., Any]] = {
        "bias": lambda y, s, b: y + b,
        "scale, bias": lambda y, s, b: y * s + b,
        "bias, scale": lambda y, s, b: (y + b) * s,
        "scale, bias, gelu": lambda y, s, b: jax.nn.gelu(y * s + b, approximate=True),
        "bias, silu": lambda y, s, b: jax.nn.silu(y + b),
        "scale a row, bias a column": lambda y, s, b: y * s[:, None] + b if y.shape[0] == y.shape[1] else y * s + b,
    }
    for m, k, n in ((256, 256, 256), (2048, 256, 2048), (1024, 2240, 1024), (384, 512, 768), (2240, 2240, 2240)):
        x, w, s, b = (rng.standard_normal(shape) for shape in ((m, k), (k, n), n, n))
        w /= k**0.5
        for name, function in after.items():
            with jax.default_device(jax.devices("cpu")[0]):
                expected = function(jnp.asarray(np.float32(x @ w)), *(jnp.asarray(v, jnp.float32) for v in (s, b)))
            for dtype, bound in (("float32", 1e-4), ("bfloat16", 0.01)):
                cast = [jnp.asarray(v, dtype) for v in (x, w, s, b)]
                with jax.default_matmul_precision("highest"):
                    actual = jax.jit(lambda x, w, s, b, function=function: function(x @ w, s, b))(*cast)
                yield Line(f"product {m}x{k}x{n}: {name}", dtype, error(actual, expected), bound)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", choices=("edit", "step", "products", "goldens"), action="append", help="some of the four")
    chosen = parser.parse_args().only or ["edit", "step", "products", "goldens"]
    print(f"{jax.devices()[0].device_kind} against the CPU, jax {jax.__version__}", flush=True)
    failed = 0
    parts = {"edit": compared(edit_stages, "nano edit", EDIT), "step": compared(training_step, "nano step", STEP), "products": epilogues()}
    for lines in (parts[name] for name in parts if name in chosen):
        for line in lines:
            over = not line.error <= line.bound
            failed += over
            print(f"{'FAIL' if over else 'ok  '} {line.part:<52} {line.dtype:<9} {line.error:.1e} / {line.bound:.0e}", flush=True)
    if "goldens" in chosen:
        failed += check_goldens.main([str(Path(__file__).parents[1] / "tests/goldens")])
    print("all within their bounds" if not failed else "FAILED")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
