"""Checks of a run's config: are its options consistent, and is it the config that the working directory started with?"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

from rich.console import Console

from dim_jax import processes
from dim_jax.config import MIX, Config, flatten, read_config
from dim_jax.data.example import JUDGEMENT
from dim_jax.data.pipeline import MixtureComponent
from dim_jax.data.readers import Text as PromptText
from dim_jax.data.synthetic import SYNTHETIC
from dim_jax.diffusion.flow import Draw
from dim_jax.errors import InputError, check, prefix_errors
from dim_jax.models.quantized import Quantize
from dim_jax.models.sana import SAVED_NAMES
from dim_jax.settings import CHECKPOINT_SETTINGS, Distilled, PromptMode, Settings
from dim_jax.sharding import Gather
from dim_jax.storage.folders import append, write_json
from dim_jax.storage.paths import AnyPath, read_object
from dim_jax.training.lora import check_lora
from dim_jax.training.objectives import CACHED, COMPONENTS, components_of, quantization
from dim_jax.training.optim import OptimizerName
from dim_jax.training.remat import AUTO
from dim_jax.training.repa import check_repa
from dim_jax.training.reward import METHODS, check_reward
from dim_jax.training.student import check_distillation

# Keys and prefixes of keys that change the loss curve by rounding only.
FREE_TO_CHANGE = (
    "data.bad_samples", "data.workers", "reward.base_url", "reward.concurrency", "sharding.", "train.keep", "train.log_every",
    "train.save_every", "train.show_every", "train.steps", "train.watchdog_minutes",
)  # fmt: skip


CHOICES: dict[str, tuple[str, ...]] = {
    "data.text": get_args(PromptText),
    "distill.method": get_args(Distilled),
    "flow.draw": get_args(Draw),
    "model.dtype": ("float32", "tf32", "bfloat16", "float16"),
    "model.quantize": ("none", *get_args(Quantize)),
    "model.remat": (AUTO, *SAVED_NAMES),
    "optim.name": get_args(OptimizerName),
    "optim.mu_dtype": ("float32", "bfloat16"),
    "reward.method": METHODS,
    "sample.blueprint_from": get_args(PromptMode),
    "sharding.gather": get_args(Gather),
}

# What must hold of numbers, and of which: NaN is in no range.
RANGES: tuple[tuple[str, Callable[[float], bool], tuple[str, ...]], ...] = (
    ("at least 1", lambda value: 1 <= value < math.inf, ("data.max_aspect_ratio",)),
    ("at least 1, whole, and below a million", lambda value: isinstance(value, int) and 1 <= value < 10**6, (
        "data.batch_size", "data.lengths", "data.resolution", "reward.concurrency", "reward.pictures", "reward.times",
    )),
    ("at least 0 and below a million", lambda value: 0 <= value < 10**6, ("data.shift",)),
    ("at least 0", lambda value: 0 <= value < math.inf, (
        "seed", "data.workers", "data.bad_samples", "data.balance", "optim.learning_rate", "optim.warmup_steps",
        "optim.weight_decay", "optim.mup_base_width", "model.width", "autoencoder.latent_noise", "autoencoder.spread_weight", "repa.weight",
        "reward.anchor",
    )),
    ("above 0", lambda value: value > 0, ("optim.clip_global_norm", "optim.eps", "flow.shift", "flow.std", "reward.beta", "reward.clip")),
    ("from 0 to 1", lambda value: 0 <= value <= 1, ("flow.condition_dropout", "flow.source_dropout")),
    ("at least 0 and less than 1", lambda value: 0 <= value < 1, ("optim.betas", "optim.ema_decay", "flow.contrastive")),
)  # fmt: skip


def check_config(config: Config) -> tuple[str, ...]:
    """The components that `config.objective` needs, after a check that the config is consistent; opens no data and no checkpoint.

    Raises:
        InputError: the objective or another choice is unknown; something else than an encoder would learn from judgements;
            `config.trainable` and `config.frozen` do not name each component once; there is no LoRA for what is quantized; nothing of the
            objective is computed in float8; `config.data.cache` is set and the run cannot use a cache; a number is out of its range; or as
            `check_lora`, `check_distillation`, `check_repa` and `check_reward`.
    """
    values = flatten(config)
    for key, choices in CHOICES.items():
        check(values[key] in choices, f"config.{key} is {values[key]!r}, but must be one of {', '.join(choices)}.")
    check(config.objective in COMPONENTS, f'config.objective is "{config.objective}", but objectives are {", ".join(COMPONENTS)}.')
    check_distillation(config)
    check_repa(config)
    check_reward(config)
    judgements = [name for name in config.data.mix if name.partition(":")[0] == JUDGEMENT]
    check(
        config.objective == "encoder" or not judgements,
        f"config.data.mix has {', '.join(judgements)}: only an encoder learns from judgements. Leave them out, or set objective=encoder.",
    )
    components = components_of(config)
    if sorted([*config.trainable, *config.frozen]) != sorted(components):
        names = f"config.trainable {tuple(config.trainable)} and config.frozen {tuple(config.frozen)}"
        raise InputError(f"{names}: name each of {', '.join(components)} once.")
    check_lora(config)
    check(
        quantization(config) is None or config.lora.rank,
        f'config.model.quantize is "{config.model.quantize}": quantized weights cannot learn. Train a LoRA (lora.rank).',
    )
    check(
        config.objective == "painter" or not config.model.float8,
        f'config.model.float8 is of SANA, and config.objective is "{config.objective}": leave it out.',
    )
    if config.data.cache:
        check_cacheable(config)
    options = config.train
    if low := [f"{name} {options[name]}" for name in ("steps", "log_every", "save_every", "keep") if options[name] < 1]:
        raise InputError(f"config.train: {', '.join(low)}: must be at least 1.")
    if options.keep_every < 0 or options.keep_every % options.save_every:
        raise InputError(f"config.train: keep_every {options.keep_every} must be a multiple of save_every {options.save_every}, or 0.")
    for name in ("show_every", "watchdog_minutes"):
        check(options[name] >= 0, f"config.train: {name} {options[name]} must be positive, or 0.")
    _check_ranges(config)
    return components


def _check_ranges(config: Config) -> None:
    """Refuse numbers that a run would take and learn nothing from, or something else."""
    values = flatten(config)
    invalid = [
        f"{key} {values[key]!r} must be {rule}"
        for rule, within, keys in RANGES
        for key in keys
        if not all(map(within, values[key] if isinstance(values[key], tuple | list) else [values[key]]))
    ]
    if config.flow.contrastive and values["data.batch_size"] == 1:
        invalid.append("data.batch_size 1 must be at least 2 for flow.contrastive, which compares rows")
    if config.optim.mup_base_width and config.optim.name != "adamw":
        invalid.append(f'optim.mup_base_width {config.optim.mup_base_width} must be 0 with optim.name "{config.optim.name}": it is of Adam')
    if not values["data.lengths"]:
        invalid.append(f"data.lengths {values['data.lengths']!r} must have at least one number")
    if len(values["optim.betas"]) != 2:
        invalid.append(f"optim.betas {values['optim.betas']!r} must have two numbers")
    check(not invalid, f"config: {'; '.join(invalid)}. Correct them (--set KEY=VALUE).")
    with prefix_errors("config.sample"):  # the settings of the checkpoint that is written at the end
        Settings(**{key: value for key, value in config.sample.items() if key in CHECKPOINT_SETTINGS})


def check_cacheable(config: Config) -> None:
    """Refuse a config that cannot train from a cache.

    Raises:
        InputError: the objective is not the painter, a cached component is trainable, pictures are augmented, or get rewards.
    """
    method = config.reward.method
    check(method == "none", f'config.reward.method is "{method}": rewards are of pictures, which a cache does not hold. Train without one.')
    if config.objective != "painter" or (learn := [name for name in CACHED if name not in config.frozen]):
        reason = f'config.objective "{config.objective}"' if config.objective != "painter" else f"config.trainable has {', '.join(learn)}"
        raise InputError(f"{reason}: a cache holds outputs of the painter's {' and '.join(CACHED)}, which must be frozen.")
    for key in ("shift", "mirrored", "recoloured"):
        if value := config.data[key]:
            raise InputError(
                f"config.data.{key} is {value!r}: a cache holds each picture once, so it cannot change pictures at random. Set "
                f"data.{key} to {type(value)()!r}."
            )


def record_config(config: Config, workdir: AnyPath, *, step: int, allow_changes: bool) -> None:
    """Write `config` to config.json, and its differences from the recorded config as a line of changes.jsonl.

    A run without a state (`step` 0) may change everything: its first start may have failed.

    Raises:
        InputError: a key that changes the loss curve differs, and `allow_changes` is not set.
    """
    path, current = workdir / "config.json", flatten(config)
    if not step:
        for name in ("config.json", "changes.jsonl", "bad_samples.jsonl"):
            (workdir / name).unlink(missing_ok=True)
    recorded = read_object(path) if path.exists() else current
    if added := {key for key in current.keys() - recorded.keys() if not key.startswith(f"{MIX}.")}:
        # Keys of a later version than the run's first one, which behaved like their defaults.
        defaults = flatten(read_config(Path("common"), {}))
        recorded |= {key: defaults[key] for key in added if key in defaults}
    pairs = {key: [recorded.get(key), current.get(key)] for key in sorted(recorded.keys() | current.keys())}
    changed = {key: [was, now] for key, (was, now) in pairs.items() if was != now}
    conflicts = [f"{key} was {was!r}, is {now!r}" for key, (was, now) in changed.items() if not key.startswith(FREE_TO_CHANGE)]
    check(
        not conflicts or allow_changes,
        f"{workdir} began with another config: {'; '.join(conflicts)}. Change it back, use another --workdir, or continue with the "
        "new one (--allow-changes).",
    )
    if changed:
        append(workdir / "changes.jsonl", json.dumps({"step": step, "changed": changed}) + "\n")
    write_json(path, current)


def report_unknown_rules(config: Config, components: Sequence[MixtureComponent], console: Console) -> None:
    """Print the rules to augment that no example has: they may be misspelt, or of other data."""
    if config.data.source == SYNTHETIC or not processes.is_first():
        return
    rules_by_key = {key: set(config.data[key]) for key in ("mirrored", "recoloured") if config.data[key]}
    known_rules = {rule for component in components for rule in component.source.rules()} if rules_by_key else set()
    for key, rules in rules_by_key.items():
        if unknown := sorted(rules - known_rules):
            message = f"data.{key}: no example has the rule {', '.join(unknown)}. There are {', '.join(sorted(known_rules))}."
            console.out(message, highlight=False)
