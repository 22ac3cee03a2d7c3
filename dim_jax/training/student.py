"""The student of a distillation: which configs fit, what SANA grows to for it, and what becomes of it in a checkpoint.

The losses are in training/distillation.py.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dim_jax.config import Config
from dim_jax.data.synthetic import SYNTHETIC
from dim_jax.diffusion import policy
from dim_jax.errors import InputError, check
from dim_jax.models.sana_config import SanaConfig
from dim_jax.settings import CHECKPOINT_SETTINGS
from dim_jax.weights.model_config import REPA, TEACHER, ModelConfig

LAST_LAYER = "sana.final_layer.linear."


def check_distillation(config: Config) -> None:
    """Refuse a `config.distill` that cannot be, or with which other keys do not fit.

    Raises:
        InputError: says which, and what to do.
    """
    distill, sample = config.distill, config.sample
    if distill.method == "none":
        return
    check(config.objective == "painter", f'config.distill.method is "{distill.method}": only a painter can be distilled. Set "none".')
    check(not config.lora.rank, f"config.lora.rank is {config.lora.rank}: a distillation trains SANA itself, no LoRA. Set lora.rank to 0.")
    check(
        tuple(config.trainable) == ("sana",),
        f"config.trainable is {tuple(config.trainable)}: student and teacher read one condition, so SANA alone learns. Freeze the others.",
    )
    scales = tuple(distill.guidance_scales)
    if len(scales) != 2 or not 0 <= scales[0] <= scales[1] < float("inf"):
        raise InputError(f"config.distill.guidance_scales is {scales}: give the least and the largest, which may be the same.")
    if config.data.source != SYNTHETIC and not config.init[TEACHER]:
        raise InputError(f"config.init.{TEACHER} is empty. Name the checkpoint of the painter to distil.")
    check(
        distill.velocities >= 1 and distill.times >= 1,
        f"config.distill: velocities {distill.velocities} and times {distill.times} must be at least 1.",
    )
    check_one_branch(config, "a student has one branch, which sees all that its teacher sees")
    if not embeds_guidance(config) and sample.guidance_scale != 1:
        raise InputError(
            f"config.sample.guidance_scale is {sample.guidance_scale}: the student's weights hold the guidance of scale {scales[0]}. "
            "Set it to 1, for a painter of one branch."
        )


def check_one_branch(config: Config, reason: str) -> None:
    """Refuse dropouts, contrastive flow matching and image guidance, with the reason why a run has no use for them.

    Raises:
        InputError: names the key.
    """
    for key in ("condition_dropout", "source_dropout", "contrastive"):
        check(not config.flow[key], f"config.flow.{key} is {config.flow[key]}: {reason}. Set it to 0.")
    scale = config.sample.image_guidance_scale
    check(scale == 1, f"config.sample.image_guidance_scale is {scale}: {reason}. Set it to 1.")


def embeds_guidance(config: Config) -> bool:
    """Whether the student takes the guidance scale as an input: there is more than one."""
    least, largest = config.distill.guidance_scales
    return config.distill.method != "none" and least < largest


def grown_sizes(config: Config) -> dict[str, Any]:
    """The sizes to which SANA grows for a run, for `SanaConfig.grow`."""
    velocities = config.distill.velocities if config.distill.method == "steps" else 1
    sizes = {"edit": config.model.edit, "condition_length": config.model.condition_length}
    return sizes | {"guidance_embeds": embeds_guidance(config), "velocities": velocities}


def check_teacher(teacher: SanaConfig, student: SanaConfig, where: str) -> None:
    """Refuse a teacher that cannot read what a student reads.

    Raises:
        InputError: says which sizes do not fit.
    """
    sizes = {key: (getattr(teacher, key), getattr(student, key)) for key in ("in_channels", "latent_channels", "caption_channels")}
    differ = ", ".join(f"{key} {there} there, {here} here" for key, (there, here) in sizes.items() if there != here)
    check(not differ, f"config.init.{TEACHER}: {where} reads other inputs than the student: {differ}. Give one of the same form.")
    check(
        teacher.guidance_embeds or teacher.null_rows >= student.condition_length,
        f"config.init.{TEACHER}: {where} has {teacher.null_rows} null rows, the student {student.condition_length}. Set "
        f"model.condition_length to {teacher.null_rows} or less.",
    )


def painter_sizes(model_config: ModelConfig) -> ModelConfig:
    """The sizes of what a run exports: without a teacher or a projection, and with one velocity."""
    sana = model_config.sana
    return replace(model_config, teacher=None, repa=None, sana=sana and replace(sana, velocities=1))


def painter_params(model_config: ModelConfig, params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of what a run exports (`painter_sizes`), from all of the run's.

    The mean of a policy's velocities is linear in them, and they are linear in what the last layer reads. So a last layer with the mean of
    their kernels and biases predicts it, and the student is a SANA like any other, which takes Euler's steps.
    """
    exported = {path: param for path, param in params.items() if path.partition(".")[0] not in (TEACHER, REPA)}
    count = 1 if model_config.sana is None else model_config.sana.velocities
    if count > 1:
        last = {path: param for path, param in exported.items() if path.startswith(LAST_LAYER)}
        exported |= jax.jit(lambda last: {path: _mean(param, count) for path, param in last.items()})(last)
    return exported


def sample_settings(config: Config) -> dict[str, Any]:
    """How a run's painter paints, as in settings.json."""
    settings = {key: value for key, value in config.sample.items() if key in CHECKPOINT_SETTINGS} | {"resolution": config.data.resolution}
    method = config.distill.method
    settings |= {"distilled": method} if method != "none" else {}
    return settings | ({"solver": "euler"} if method == "steps" else {})


def _mean(param: Float[Array, "*d nc"], count: int) -> Float[Array, "*d c"]:
    return jnp.einsum("...nc,n->...c", param.reshape(*param.shape[:-1], count, -1), policy.mean_weights(count), precision="highest")
