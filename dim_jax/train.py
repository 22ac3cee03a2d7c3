"""Training, from the first step to the checkpoint, as one text: config -> start -> data -> step -> resume -> loop -> export.

    dim train --config configs/nano_edit.py --workdir runs/nano_edit

docs/training.md says what a working directory holds, dim_jax/training/ has the parts, dim_jax/processes.py what several processes do
together: each runs this text, and the first one alone writes, but for its shards of checkpoints.
"""

from collections.abc import Sequence
from typing import Any

import jax
from rich.console import Console

from dim_jax import processes
from dim_jax.checkpoint import orbax_path
from dim_jax.chips import peak_flops
from dim_jax.config import Config
from dim_jax.console import open_console
from dim_jax.data.augment import Augment
from dim_jax.data.bad_samples import BadSamples
from dim_jax.data.example import SPLITS
from dim_jax.data.pipeline import Loader, MixtureComponent, batches, evenly_spaced_examples, make_plan
from dim_jax.data.synthetic import SYNTHETIC
from dim_jax.errors import InputError
from dim_jax.models.module import with_parameters
from dim_jax.paths import AnyPath, as_path
from dim_jax.sharding import Sharding
from dim_jax.training.config_guard import same_config
from dim_jax.training.exporting import MEASURED, make_tokenizer, write_model, write_sheet
from dim_jax.training.fingerprint import cached_parts, fingerprint
from dim_jax.training.log import MetricWriter
from dim_jax.training.metrics_buffer import MetricsBuffer
from dim_jax.training.model_init import ModelInit, open_data
from dim_jax.training.objectives import objective_kind, open_objective
from dim_jax.training.objectives.cached import CachedPainterObjective
from dim_jax.training.profiling import Profile
from dim_jax.training.progress import Speed
from dim_jax.training.resume import latest_step, training_states
from dim_jax.training.step import State, make_step
from dim_jax.training.supervision import STOPPED, Termination, Watchdog

SHOWN = 8  # held-out examples on a sheet


def main(
    config: Config, workdir: AnyPath, *, allow_changes: bool = False, profile: tuple[int, int] | None = None, console: Console | None = None
) -> None:
    """Train as `config` says (configs/common.py lists all keys), or go on where `workdir` stopped.

    Args:
        config: what to do.
        workdir: where the run lives.
        allow_changes: go on with another config than `workdir` began with, and note what changed.
        profile: first and last step of a trace for the profiler.
        console: what shows the progress; None: stderr, of the first process.

    Raises:
        InputError: the config does not hold together, differs from the one that `workdir` began with, names files that cannot be used;
            or the loss is not finite.
        SystemExit: SIGTERM came, to any process; the step under way is saved, and the same call goes on after it.
    """
    first = processes.is_first()
    console = console or open_console(quiet=not first)
    kind = objective_kind(config)
    _check(config)
    orbax_path(workdir)  # refuses one that could not hold the run's states
    workdir.mkdir(parents=True, exist_ok=True)
    checkpoints = workdir / "checkpoints"
    begun = latest_step(checkpoints)
    if first:
        same_config(config, workdir, step=begun, allow_changes=allow_changes)

    # Start: sizes, mesh, data, tokenizer.
    start = ModelInit.open(config, kind.PARTS)
    sharding = Sharding.open(config, start.sizes)
    data = config.data
    parts, held_out = (open_data(config, split) for split in SPLITS)
    tokenizer = make_tokenizer(config, start, parts, workdir, begun=begun > 0)
    processes.barrier("the config and the tokenizer")
    objective = open_objective(config, start, tokenizer)
    chat = objective.processor and objective.processor.tokenizer
    if isinstance(objective, CachedPainterObjective):
        parts = cached_parts(as_path(data.cache), parts, fingerprint(start, objective))
    plan = make_plan(
        parts, objective.reader, chat, batch_size=data.batch_size, seed=config.seed, balance=data.balance, allowed=data.bad_samples,
        console=console,
    )  # fmt: skip
    places = sharding.local_batch_indices(data.batch_size)
    if first:
        _say_unknown(data, parts, console)
    augment = None if data.cache else Augment(data.shift, data.mirrored, data.recoloured)
    loader = Loader(parts, plan, objective.reader, places, augment=augment, substitute=data.bad_samples > 0)
    bad_samples = BadSamples(workdir / "bad_samples.jsonl", data.bad_samples)

    # Step.
    training = make_step(config, objective, sharding)
    learns, rests = _count(training.abstract_state.params), _count(training.frozen)
    console.out(f"{config.objective}: {learns} parameters learn, {rests} are frozen", highlight=False)
    frozen = dict[str, Any]()

    def averaged(state: State) -> Any:
        """The whole model; of a cache, the parts that no step needs are only loaded for as long as somebody holds it."""
        return with_parameters(objective.model, state.ema | frozen | start.tensors(config.seed, training.cached_params))

    # Resume.
    how = config.train
    with training_states(checkpoints, keep=how.keep, keep_every=how.keep_every) as saved:
        restored = saved.restore(training.abstract_state)
        read = start.tensors(
            config.seed, training.frozen | ({} if restored else training.abstract_state.params)
        )  # once: it may come from afar
        frozen |= {path: read.pop(path) for path in training.frozen}
        if restored is None:
            state, before = training.init_state(read), ()
        else:
            state, before = restored.state, restored.notes.get("recent", ())
        done = int(state.step)
        if done:
            console.out(f"going on after step {done}", highlight=False)

        # Loop.
        bad_held_out = bad_samples.new if data.bad_samples else None
        shown = list(evenly_spaced_examples(held_out, SHOWN, bad_held_out))
        stream = bad_samples.watch(batches(loader, start=done, workers=data.workers))
        place = sharding.place_local_rows(loader.places, data.batch_size)
        peak = peak_flops(jax.devices()[0].device_kind)
        speed = Speed(data.batch_size, peak and peak * jax.device_count())
        recent, flops = MetricsBuffer(workdir / "non_finite.json", before), dict[tuple, int]()
        vote = processes.Vote()
        with (
            Profile(workdir / "profile", profile, done=done, total=how.steps) as trace,
            MetricWriter(workdir, console, total=how.steps, done=done) as record,
            Termination() as termination,
            Watchdog(how.watchdog_minutes) as watchdog,
        ):
            for step in range(done + 1, how.steps + 1):
                with speed.waiting():
                    keys, batch, _ = next(stream)
                saved.settle()
                batch = sharding.shard(batch, place)
                shapes = tuple(array.shape for array in jax.tree.leaves(batch))
                if shapes not in flops:  # once for each bucket, which is compiled now
                    watchdog.pause()
                    flops[shapes] = objective.step_flops(batch).model
                speed.computes(flops[shapes])
                with trace.step(step, recent.flush):
                    state, metrics = training.train_step(state, frozen, batch)
                    recent.add(step, dict(zip(loader.places.tolist(), keys, strict=True)), metrics)
                last, stopping = step == how.steps, vote(termination.asked)
                logging, saving = (step % every == 0 or last for every in (how.log_every, how.save_every))
                if logging or saving or stopping:
                    bad_samples.flush()
                if logging:
                    record.write(step, recent.means(), speed.read())
                if saving or stopping:
                    notes = {"config": config.to_dict(), "recent": recent.flush()}
                    if not training.finite(state):
                        raise recent.not_finite("the loss is finite, but not every number of the state after it")
                    saved.save(step, state, notes)
                if stopping:
                    console.out(f"SIGTERM: saving step {step}; the same command goes on after it", highlight=False)
                    raise SystemExit(STOPPED)
                if shown and how.show_every and (step % how.show_every == 0 or last):
                    watchdog.pause()
                    sheet = write_sheet(workdir / "sheets" / f"{step:06}", objective.show(averaged(state), shown))
                    console.out(f"step {step}: {sheet}", highlight=False)
                watchdog.alive()

    # Export.
    average = state.ema
    del state  # whose moments may be where the other parts go
    exact = {path: tensor for path, tensor in frozen.items() if tensor.dtype == training.exported[path].dtype}
    frozen.clear()  # the others were rounded to the dtype of computation: they are read again
    tensors = average | exact | start.tensors(config.seed, {path: leaf for path, leaf in training.exported.items() if path not in exact})
    write_model(workdir / "model", config, objective, tensors, evenly_spaced_examples(held_out, MEASURED, bad_held_out), tokenizer)
    bad_samples.flush()
    console.out(f"wrote {workdir / 'model'}", highlight=False)


def _check(config: Config) -> None:
    how = config.train
    names = ("steps", "log_every", "save_every", "keep")
    if low := [f"{name} {how[name]}" for name in names if how[name] < 1]:
        raise InputError(f"config.train: {', '.join(low)}: must be at least 1.")
    if how.keep_every < 0 or how.keep_every % how.save_every:
        raise InputError(f"config.train: keep_every {how.keep_every} must be a multiple of save_every {how.save_every}, or 0.")
    if how.show_every < 0:
        raise InputError(f"config.train: show_every {how.show_every} must be positive, or 0.")
    if how.watchdog_minutes < 0:
        raise InputError(f"config.train: watchdog_minutes {how.watchdog_minutes} must be positive, or 0.")


def _say_unknown(data: Config, parts: Sequence[MixtureComponent], console: Console) -> None:
    """Rules that are to be augmented and that no example has: perhaps misspelt, perhaps of other data."""
    named = {key: set(data[key]) for key in ("mirrored", "recoloured") if data[key] and data.source != SYNTHETIC}
    known = {rule for part in parts for rule in part.source.rules()} if named else set()
    for key, rules in named.items():
        if unknown := sorted(rules - known):
            said = f"data.{key}: no example has the rule {', '.join(unknown)}. There are {', '.join(sorted(known))}."
            console.out(said, highlight=False)


def _count(tensors: dict[str, Any]) -> str:
    return f"{sum(tensor.size for tensor in tensors.values()):,}"
