"""Checks of a run's config: whether its options hold together, and whether it is the one that the working directory began with."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from dim_jax import processes
from dim_jax.config import MIX, Config, flat, read_config
from dim_jax.data.pipeline import MixtureComponent
from dim_jax.data.synthetic import SYNTHETIC
from dim_jax.errors import InputError
from dim_jax.models.sana import SAVED_NAMES
from dim_jax.storage.folders import append, new_file
from dim_jax.storage.paths import AnyPath, read_json
from dim_jax.training.lora import check_lora
from dim_jax.training.objectives import CACHED, COMPONENTS

# Keys, and beginnings of keys: the curve does not depend on them, but for rounding.
FREE_TO_CHANGE = (
    "data.bad_samples", "data.workers", "sharding.", "train.keep", "train.log_every", "train.save_every", "train.show_every",
    "train.steps", "train.watchdog_minutes",
)  # fmt: skip


def check_config(config: Config) -> tuple[str, ...]:
    """The components that `config.objective` needs, once the config is known to hold together; its data and checkpoints are not opened.

    Raises:
        InputError: there is no such objective or `config.model.remat`; `config.trainable` and `config.frozen` do not name each component
            once; it cannot be trained from a cache, which `config.data.cache` names; a number of `config.train` is too small; or as
            `check_lora`.
    """
    if config.objective not in COMPONENTS:
        raise InputError(f'config.objective is "{config.objective}", but objectives are {", ".join(COMPONENTS)}.')
    components = COMPONENTS[config.objective]
    if sorted([*config.trainable, *config.frozen]) != sorted(components):
        names = f"config.trainable {tuple(config.trainable)} and config.frozen {tuple(config.frozen)}"
        raise InputError(f"{names}: name each of {', '.join(components)} once.")
    check_lora(config)
    if config.model.remat not in SAVED_NAMES:
        raise InputError(f"config.model.remat is {config.model.remat!r}, but must be one of {', '.join(SAVED_NAMES)}.")
    if config.data.cache:
        check_cacheable(config)
    options = config.train
    if low := [f"{name} {options[name]}" for name in ("steps", "log_every", "save_every", "keep") if options[name] < 1]:
        raise InputError(f"config.train: {', '.join(low)}: must be at least 1.")
    if options.keep_every < 0 or options.keep_every % options.save_every:
        raise InputError(f"config.train: keep_every {options.keep_every} must be a multiple of save_every {options.save_every}, or 0.")
    for name in ("show_every", "watchdog_minutes"):
        if options[name] < 0:
            raise InputError(f"config.train: {name} {options[name]} must be positive, or 0.")
    return components


def check_cacheable(config: Config) -> None:
    """Refuse what no cache can hold.

    Raises:
        InputError: it is not the painter that is trained, a component whose results are cached learns, or pictures are changed at random.
    """
    if config.objective != "painter" or (learn := [name for name in CACHED if name not in config.frozen]):
        reason = f'config.objective "{config.objective}"' if config.objective != "painter" else f"config.trainable has {', '.join(learn)}"
        raise InputError(f"{reason}: a cache is of the painter's {' and '.join(CACHED)}, which must be frozen.")
    for key in ("shift", "mirrored", "recoloured"):
        if value := config.data[key]:
            raise InputError(
                f"config.data.{key} is {value!r}: a cache holds each picture once, so it cannot change pictures at random. Set "
                f"data.{key} to {type(value)()!r}."
            )


def same_config(config: Config, workdir: AnyPath, *, step: int, allow_changes: bool) -> None:
    """Write `config` to config.json, and what differs from the one before, after `step`, as a line of changes.jsonl.

    A start that left no state (`step` 0) binds nobody: it may have been refused.

    Raises:
        InputError: a key differs on which the curve depends, and `allow_changes` is not set.
    """
    path, now = workdir / "config.json", flat(config)
    if not step:
        for name in ("config.json", "changes.jsonl", "bad_samples.jsonl"):
            (workdir / name).unlink(missing_ok=True)
    before = read_json(path) if path.exists() else now
    if new := {key for key in now.keys() - before.keys() if not key.startswith(f"{MIX}.")}:
        # They came with a later version than the run began with, which did what their default does.
        defaults = flat(read_config(Path("common"), {}))
        before |= {key: defaults[key] for key in new if key in defaults}
    changed = {key: [before.get(key), now.get(key)] for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)}
    bound = [f"{key} was {was!r}, is {new!r}" for key, (was, new) in changed.items() if not key.startswith(FREE_TO_CHANGE)]
    if bound and not allow_changes:
        raise InputError(
            f"{workdir} began with another config: {'; '.join(bound)}. Change it back, use another --workdir, or go on with the new one "
            "(--allow-changes)."
        )
    if changed:
        append(workdir / "changes.jsonl", json.dumps({"step": step, "changed": changed}) + "\n")
    with new_file(path) as scratch:
        scratch.write_text(json.dumps(now, indent=1) + "\n")


def report_unknown_rules(config: Config, components: Sequence[MixtureComponent], console: Console) -> None:
    """Name the rules to augment that no example has, once: perhaps they are misspelt, perhaps of other data."""
    if config.data.source == SYNTHETIC or not processes.is_first():
        return
    named = {key: set(config.data[key]) for key in ("mirrored", "recoloured") if config.data[key]}
    known = {rule for component in components for rule in component.source.rules()} if named else set()
    for key, rules in named.items():
        if unknown := sorted(rules - known):
            message = f"data.{key}: no example has the rule {', '.join(unknown)}. There are {', '.join(sorted(known))}."
            console.out(message, highlight=False)
