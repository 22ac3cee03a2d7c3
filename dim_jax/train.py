"""Training, from the first step to the checkpoint, as one text: config -> start -> data -> step -> resume -> loop -> export.

    dim train --config configs/nano_edit.py --workdir runs/nano_edit

The working directory holds config.json, log.jsonl (the same in every run of this config), speed.jsonl, tokenizer/ (if one was trained),
checkpoints/STEP (to resume from), sheets/STEP (what it makes of held-out examples) and at the end model/, the averaged weights as a
checkpoint folder.
"""

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dim_jax import checkpoint
from dim_jax.config import Config
from dim_jax.data.pairs import Example
from dim_jax.data.pipeline import Source, batches, open_mixture
from dim_jax.data.tokenizer import train_tokenizer
from dim_jax.errors import InputError
from dim_jax.log import Log
from dim_jax.models.module import with_parameters
from dim_jax.objectives import objective_kind, open_objective
from dim_jax.resume import training_states
from dim_jax.sharding import Sharding, put
from dim_jax.start import Start
from dim_jax.step import State, make_step
from dim_jax.weights.convert import tokenizer_in

SHOWN = 8  # held-out examples on a sheet
MEASURED = 256  # held-out examples that `finished` may measure
READ = 20_000  # examples of each source whose texts make a tokenizer
# Keys, and beginnings of keys: the curve does not depend on them, but for rounding.
FREE_TO_CHANGE = ("data.workers", "sharding.", "train.steps", "train.log_every", "train.save_every", "train.show_every", "train.keep")


def main(config: Config, workdir: Path, *, console: Console | None = None) -> None:
    """Train as `config` says (configs/common.py lists all keys), or go on where `workdir` stopped.

    Raises:
        InputError: the config does not hold together, differs from the one that `workdir` began with, names files that cannot be used;
            or the loss is not finite.
    """
    console = console or Console(stderr=True)
    kind = objective_kind(config)
    _check(config)
    workdir.mkdir(parents=True, exist_ok=True)
    _same_config(config, workdir / "config.json")

    # Start: sizes, mesh, data, tokenizer.
    start = Start.open(config, kind.PARTS)
    sharding = Sharding.open(config, start.sizes)
    data = config.data
    train_data = open_mixture(data.source, data.mix.to_dict(), split="train", side=data.resolution, balance=data.balance)
    held_out = [source for source, _ in open_mixture(data.source, data.mix.to_dict(), split="test", side=data.resolution)]
    tokenizer = None
    if start.sizes.encoder is not None:
        tokenizer = Path(data.tokenizer) if data.tokenizer else start.tokenizer or workdir / "tokenizer"
        if tokenizer == workdir / "tokenizer" and not tokenizer.exists():
            train_tokenizer(_texts(train_data), start.sizes.encoder.text.vocab_size, tokenizer)
    objective = open_objective(config, start, tokenizer)

    # Step.
    training = make_step(config, objective, sharding)
    frozen = start.tensors(config.seed, training.frozen)
    console.print(f"{config.objective}: {_count(training.like.params)} parameters learn, {_count(frozen)} are frozen", highlight=False)

    def averaged(state: State) -> Any:
        return with_parameters(objective.model, state.ema | frozen)

    # Resume.
    with training_states(workdir / "checkpoints", keep=config.train.keep) as saved:
        state = saved.restore(training.like)
        if state is None:
            state = training.begin(start.tensors(config.seed, training.like.params))
        done = int(state.step)
        log, speeds = (Log(workdir / name, after=done) for name in ("log.jsonl", "speed.jsonl"))
        if done:
            console.print(f"going on after step {done}", highlight=False)

        # Loop.
        shown = list(_spread(held_out, SHOWN))
        stream = batches(
            train_data, objective.reader, batch_size=data.batch_size, seed=config.seed, start=done, workers=data.workers, shift=data.shift
        )
        pending, since, waited = [], time.perf_counter(), 0.0
        columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
        with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task("", total=config.train.steps, completed=done)
            for step in range(done + 1, config.train.steps + 1):
                before = time.perf_counter()
                _, batch = next(stream)
                waited += time.perf_counter() - before
                state, metrics = training.run(state, frozen, sharding.spread(batch, put))
                pending.append(metrics)
                last = step == config.train.steps
                if step % config.train.log_every == 0 or last:
                    means = {name: float(np.mean([one[name] for one in jax.device_get(pending)])) for name in pending[0]}
                    now = time.perf_counter()
                    speed = {"steps_per_second": len(pending) / (now - since), "waiting_for_data": waited / (now - since)}
                    pending, since, waited = [], now, 0.0
                    if not math.isfinite(means["loss"]):
                        raise InputError(
                            f"The loss is {means['loss']} up to step {step}. The states before it are in {workdir / 'checkpoints'}. Lower "
                            "optim.learning_rate or optim.clip_global_norm, and use another workdir."
                        )
                    log.write(step, means)
                    speeds.write(step, speed)
                    bar.update(task, completed=step, description=f"loss {means['loss']:.4f}, {speed['steps_per_second']:.1f} steps/s")
                if step % config.train.save_every == 0 or last:
                    saved.save(step, state)
                if step % config.train.show_every == 0 or last:
                    (workdir / "sheets").mkdir(exist_ok=True)
                    name = objective.show(averaged(state), shown, workdir / "sheets" / f"{step:06}")
                    console.print(f"step {step}: {workdir / 'sheets' / name}", highlight=False)

    # Export.
    model = averaged(state)
    sizes = objective.finished(model, list(_spread(held_out, MEASURED)))
    settings = None
    if config.objective == "painter":
        settings = workdir / "settings.json"
        settings.write_text(json.dumps(config.sample.to_dict() | {"resolution": data.resolution}, indent=1) + "\n")
    checkpoint.save(
        workdir / "model",
        state.ema | frozen,
        sizes.to_json(),
        tokenizer=tokenizer_in(tokenizer) if tokenizer else (),
        settings=settings,
        overwrite=True,
    )
    console.print(f"wrote {workdir / 'model'}", highlight=False)


def _check(config: Config) -> None:
    train = config.train
    if train.steps < 1 or train.log_every < 1 or train.save_every % train.log_every or train.show_every < 1:
        raise InputError(
            f"config.train: steps {train.steps}, log_every {train.log_every} and show_every {train.show_every} must be at least 1, and "
            f"save_every {train.save_every} a multiple of log_every, so that the log goes on where a checkpoint is."
        )


def _same_config(config: Config, path: Path) -> None:
    """The config as it was when the working directory began, but for what may change on the way."""
    flat = {key: list(value) if isinstance(value, tuple) else value for key, value in _flat(config.to_dict())}
    if path.exists():
        before = checkpoint.read_json(path)
        changed = [
            f"{key} was {before.get(key)!r}, is {flat.get(key)!r}"
            for key in sorted(before.keys() | flat.keys())
            if before.get(key) != flat.get(key) and not key.startswith(FREE_TO_CHANGE)
        ]
        if changed:
            raise InputError(f"{path.parent} began with another config: {'; '.join(changed)}. Use another --workdir, or change it back.")
    path.write_text(json.dumps(flat, indent=1) + "\n")


def _flat(tree: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        yield from _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]


def _texts(sources: list[tuple[Source, float]]) -> Iterator[str]:
    """The texts of each source, for a tokenizer that is trained on them."""
    for source, _ in sources:
        for example in _spread([source], READ):
            yield from (*example.texts, example.blueprint or "")


def _spread(sources: list[Source], count: int) -> Iterator[Example]:
    """At most `count` examples, taken evenly from all of the sources."""
    each = -(-count // len(sources))
    places = [(source, int(i)) for source in sources for i in np.linspace(0, len(source) - 1, min(each, len(source)))]
    return (source[i] for source, i in places[:count])


def _count(tensors: dict[str, Any]) -> str:
    return f"{sum(tensor.size for tensor in tensors.values()):,}"
