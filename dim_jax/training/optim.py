"""The optimizer of every stage: AdamW, or Muon for matrices, after a clip of the global gradient norm."""

from collections.abc import Collection
from functools import partial
from typing import Any, Literal

import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from dim_jax.config import Config
from dim_jax.errors import InputError
from dim_jax.weights.logical_axes import logical_axes

UNDECAYED = ("scale", "bias", "scale_shift_table", "y_embedding")  # last names of parameters
OptimizerName = Literal["adamw", "muon"]
WIDTH = "sana.t_block.kernel"  # has as many rows as SANA is wide
# Matrices of SANA that read frequencies of the time or of the guidance scale, or conditions: as many in every width.
FIXED_INPUTS = ("sana.t_embedder.fc1.kernel", "sana.guidance_embedder.fc1.kernel", "sana.y_embedder.y_proj.fc1.kernel")
MOMENTUM, RMS = 0.95, 0.2  # of Muon: the decay of its momentum, and how large a number of an update is, as Adam's are


def make_optimizer(config: Config) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimizer of a run, and the learning rate of each of its updates.

    Raises:
        InputError: more batches make an update than there are steps.
    """
    options = config.optim
    if not 1 <= options.accumulate <= config.train.steps:
        raise InputError(f"config.optim.accumulate is {options.accumulate}: it must be from 1 to train.steps, {config.train.steps}.")
    updates = config.train.steps // options.accumulate
    learning_rate = schedule(options.learning_rate, warmup_steps=options.warmup_steps, cosine=options.cosine, steps=updates)
    optimizer = clipped_optimizer(
        learning_rate, name=options.name, weight_decay=options.weight_decay, clip_global_norm=options.clip_global_norm,
        betas=tuple(options.betas), eps=options.eps, mu_dtype=options.mu_dtype, undecayed=tuple(options.undecayed),
        mup_base_width=options.mup_base_width,
    )  # fmt: skip
    return optimizer, learning_rate


def ema_decay(config: Config, step: Int[Array, ""]) -> Float[Array, ""]:
    """How much of the averages an update keeps: config.optim.ema_decay, less in the first updates."""
    update = step // config.optim.accumulate
    return jnp.minimum(config.optim.ema_decay, (1 + update) / (10 + update))


def clipped_optimizer(
    learning_rate: optax.ScalarOrSchedule,
    *,
    name: OptimizerName = "adamw",
    weight_decay: float,
    clip_global_norm: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    mu_dtype: DTypeLike = jnp.float32,
    undecayed: Collection[str] = UNDECAYED,
    mup_base_width: int = 0,
) -> optax.GradientTransformation:
    """Adam or Muon with decoupled weight decay (arXiv 1711.05101) on gradients whose joint L2 norm is at most `clip_global_norm`.

    Muon (arXiv 2502.16982) makes the momentum of a matrix orthogonal, in steps as large as Adam's, so both take one learning rate. It
    needs no second moments. Adam changes what is no matrix, and the first and last layer.

    Parameters whose last name is in `undecayed` do not decay: scales of norms, biases, tables of scale and shift, and the null table, which
    stands for a condition, are not a factor of a product. PyTorch's AdamW decays all of them (`undecayed=()`).

    With `mup_base_width` matrices of SANA have a rate by width (`mup_factor`), and decay as before. `mu_dtype` is of the first moments;
    second ones, which change by a thousandth a step, stay in float32.
    """

    def decay(updates: Any, params: Any) -> Any:
        if mup_base_width and (width := params.get(WIDTH)) is not None:
            updates = {path: mup_factor(path, width.shape[0], mup_base_width) * change for path, change in updates.items()}
        return {
            path: change if path.rpartition(".")[2] in undecayed else change + weight_decay * params[path]
            for path, change in updates.items()
        }

    scale = optax.scale_by_adam(*betas, eps=eps, mu_dtype=mu_dtype)
    if name == "muon":
        muon = optax.contrib.scale_by_muon(beta=MOMENTUM, mu_dtype=mu_dtype, weight_dimension_numbers=_matrices)
        muon = optax.chain(muon, optax.stateless(_as_large_as_adam))
        scale = optax.chain(optax.masked(muon, partial(_mask, matrices=True)), optax.masked(scale, partial(_mask, matrices=False)))
    # As `optax.adamw`, but for its mask, which would make another state of it: runs that began without one could not go on.
    scale = optax.chain(scale, optax.stateless(decay), optax.scale_by_learning_rate(learning_rate))
    return optax.chain(optax.clip_by_global_norm(clip_global_norm), scale)


def is_matrix(path: str) -> bool:
    """Whether a parameter is the kernel of a linear layer between others, or a stack of them."""
    axes = [axis for axis in logical_axes(path) if axis != "layers"]
    return path.endswith(".kernel") and len(axes) == 2 and not {"latents", "vocabulary"} & {*axes}


def mup_factor(path: str, width: int, base_width: int) -> float:
    """By what the learning rate of a parameter is multiplied in a SANA of `width`, so that one that suits `base_width` suits all widths.

    The rule of muP for Adam (arXiv 2203.03466, table 3): base_width / width for matrices with as many inputs as the network is wide, and
    1 for the rest. Heads keep their width, so attention needs no other scale. Initial values stay as they are; muP's last layer starts
    smaller.
    """
    grows = path.startswith("sana.") and (is_matrix(path) or path == "sana.final_layer.linear.kernel") and path not in FIXED_INPUTS
    return base_width / width if grows else 1.0


def _mask(params: Any, *, matrices: bool) -> Any:
    return {path: is_matrix(path) == matrices for path in params}


def _matrices(params: Any) -> Any:
    """Which axes of the parameters that Muon has are a matrix's."""
    matrix = optax.contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)
    return {path: x if isinstance(x, optax.MaskedNode) else matrix for path, x in params.items()}


def _as_large_as_adam(updates: Any, params: Any) -> Any:
    """Orthogonal matrices scaled to a root mean square of RMS, whatever their shape."""
    del params
    return {path: x if isinstance(x, optax.MaskedNode) else RMS * max(x.shape[-2:]) ** 0.5 * x for path, x in updates.items()}


def schedule(learning_rate: float, *, warmup_steps: int, cosine: bool, steps: int) -> optax.Schedule:
    """Up from zero over `warmup_steps`, then constant, or down to zero along a cosine (arXiv 1608.03983) until `steps`."""
    if cosine:
        return optax.warmup_cosine_decay_schedule(0.0, learning_rate, min(warmup_steps, steps - 1), steps)
    return optax.join_schedules(
        [optax.linear_schedule(0.0, learning_rate, warmup_steps), optax.constant_schedule(learning_rate)], [warmup_steps]
    )
