"""Training, from the first step to the checkpoint, as one text: config -> start -> data -> step -> resume -> loop -> export.

    dim train --config configs/nano_edit.py --workdir runs/nano_edit

docs/training.md says what a working directory holds, training/losses.py what is minimised. Each of several processes runs this text
(processes.py), and the first one alone writes, but for its shards of checkpoints.
"""

import math
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import optax
from rich.console import Console

from dim_jax import processes
from dim_jax.config import Config
from dim_jax.console import open_console
from dim_jax.data.example import SPLITS
from dim_jax.data.pipeline import BadSamples, Loader, batches, evenly_spaced_examples, make_plan
from dim_jax.data.readers import Augment
from dim_jax.models import layers
from dim_jax.models.chips import peak_flops
from dim_jax.models.module import with_parameters
from dim_jax.models.precision import compute_dtype
from dim_jax.models.sana import Remat
from dim_jax.rng import key_seed
from dim_jax.sharding import Sharding
from dim_jax.storage.orbax import orbax_path
from dim_jax.storage.paths import AnyPath, as_path
from dim_jax.training.config_guard import check_config, record_config, report_unknown_rules
from dim_jax.training.exporting import SCALING_EXAMPLES, make_tokenizer, write_adapters, write_model
from dim_jax.training.fingerprint import cached_mixture, fingerprint
from dim_jax.training.held_out import write_sheet
from dim_jax.training.log import MetricWriter
from dim_jax.training.losses import Loss, Metrics
from dim_jax.training.metrics_buffer import MetricsBuffer
from dim_jax.training.model_init import ModelInit, open_data
from dim_jax.training.objectives import Objective, make_objective, open_objective
from dim_jax.training.optim import make_optimizer
from dim_jax.training.profiling import Profile
from dim_jax.training.progress import Speed
from dim_jax.training.remat import AUTO, FittingStep, remat_choices
from dim_jax.training.resume import latest_step, training_states
from dim_jax.training.rollout import open_rollout
from dim_jax.training.state import Params, State, abstract_exported, abstract_frozen, abstract_state, init_state, is_finite, next_state
from dim_jax.training.step_flops import step_flops
from dim_jax.training.supervision import STOPPED, TerminatedError, Termination, Watchdog

NUM_EXAMPLES = 8  # held-out examples on a sheet


def make_train_step(config: Config, objective: Objective, sharding: Sharding, abstract: State) -> Any:
    """The compiled step: (state, frozen, batch) -> (state, metrics), for states laid out as `abstract`. It takes the state over; frozen
    parameters get no gradient."""
    _, learning_rate = make_optimizer(config)

    def train_step(state: State, frozen: Params, batch: Any) -> tuple[State, Metrics]:
        key = jax.random.fold_in(jax.random.key(key_seed(config.seed, "steps")), state.step)

        def loss_fn(params: Params) -> Loss:
            if config.sharding.gather == "step":
                params = sharding.gather(params, compute_dtype(config.model.dtype))
            model = with_parameters(objective.model, params | frozen)
            features = objective.features(model, batch)  # of the painter: by encoder and autoencoder, or as a cache stores them
            return objective.loss(model, features, key)

        with jax.sharding.use_abstract_mesh(sharding.mesh.abstract_mesh):  # where `layers.shard_batch` looks
            (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        rate = learning_rate(state.step // config.optim.accumulate)
        metrics |= {"loss": loss, "grad_norm": optax.tree.norm(grads), "learning_rate": jnp.asarray(rate)}
        return next_state(config, state, grads), metrics

    # The new state lies as the old one. Else the compiler would choose, and the second step would be another program than the first.
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    out_shardings = shardings, sharding.replicated
    return jax.jit(train_step, out_shardings=out_shardings, donate_argnums=0, compiler_options=sharding.compiler_options)


def make_fitting_step(config: Config, objective: Objective, sharding: Sharding, abstract: State, print_line: Callable[[str], Any]) -> Any:
    """The step of `make_train_step`; if `config.model.remat` is "auto", with the choice that fits each shape of batch."""

    def make_step(remat: Remat) -> Any:
        chosen = deepcopy(config)
        chosen.model.remat = remat
        return make_train_step(chosen, make_objective(chosen, objective.model_config, objective.processor), sharding, abstract)

    if config.model.remat != AUTO:
        return make_train_step(config, objective, sharding, abstract)
    sana = objective.model_config.sana
    with jax.sharding.use_abstract_mesh(sharding.mesh.abstract_mesh):
        unrolled = sana is not None and layers.unrolls(sana.depth)
    return FittingStep(make_step, remat_choices(AUTO, unrolled=unrolled), print_line)


def main(
    config: Config, workdir: AnyPath, *, allow_changes: bool = False, profile: tuple[int, int] | None = None, console: Console | None = None
) -> None:
    """Train as `config` says (configs/common.py lists all keys), or go on where `workdir` stopped.

    Args:
        allow_changes: go on with another config than `workdir` began with, and note what changed.
        profile: first and last step of a trace for the profiler.
        console: what shows the progress; None: stderr, of the first process.

    Raises:
        InputError: the config does not hold together, differs from the one that `workdir` began with, names files that cannot be used;
            or the loss is not finite.
        SystemExit: SIGTERM came, to any process; the last step is saved, and the same call goes on after it.
    """
    is_first = processes.is_first()
    console = console or open_console(quiet=not is_first)
    components = check_config(config)
    orbax_path(workdir)  # refuses one that could not hold the run's states
    workdir.mkdir(parents=True, exist_ok=True)
    checkpoints = workdir / "checkpoints"
    latest = latest_step(checkpoints)
    if is_first:
        record_config(config, workdir, step=latest, allow_changes=allow_changes)

    # Start: sizes, mesh, data, tokenizer.
    model_init = ModelInit.open(config, components)
    sharding = Sharding.open(config, model_init.model_config)
    data = config.data
    mixture, held_out = (open_data(config, split) for split in SPLITS)
    tokenizer = make_tokenizer(config, model_init, mixture, workdir, has_state=latest > 0)
    processes.barrier("the config and the tokenizer")
    objective = open_objective(config, model_init, tokenizer)
    chat = objective.processor and objective.processor.tokenizer
    if data.cache:
        mixture = cached_mixture(as_path(data.cache), mixture, fingerprint(model_init, objective))
    plan = make_plan(
        mixture, objective.reader, chat, batch_size=data.batch_size, seed=config.seed, balance=data.balance, max_bad_rows=data.bad_samples,
        console=console,
    )  # fmt: skip
    batch_indices = sharding.local_batch_indices(data.batch_size)
    report_unknown_rules(config, mixture, console)
    augment = None if data.cache else Augment(data.shift, data.mirrored, data.recoloured)
    loader = Loader(mixture, plan, objective.reader, batch_indices, augment=augment, replace_bad_samples=data.bad_samples > 0)
    bad_samples = BadSamples(workdir / "bad_samples.jsonl", data.bad_samples)

    # Step.
    model_config = objective.model_config
    state_like, (frozen_like, cached_like) = abstract_state(config, model_config, sharding), abstract_frozen(objective, sharding)
    train_step = make_fitting_step(config, objective, sharding, state_like, partial(console.out, highlight=False))
    num_trainable, num_frozen = (sum(math.prod(leaf.shape) for leaf in params.values()) for params in (state_like.params, frozen_like))
    console.out(f"{config.objective}: {num_trainable:,} parameters learn, {num_frozen:,} are frozen", highlight=False)

    # Resume.
    steps = config.train.steps
    with training_states(checkpoints, keep=config.train.keep, keep_every=config.train.keep_every) as states:
        restored = states.restore(state_like)
        needed = frozen_like if restored else frozen_like | state_like.params
        params = model_init.init_params(config.seed, needed)  # all in one call: they may come from afar
        frozen = {path: params.pop(path) for path in frozen_like}
        state = restored.state if restored else init_state(config, params, state_like)
        first = int(state.step)
        if first:
            console.out(f"going on after step {first}", highlight=False)

        # Loop.
        bad_held_out = bad_samples.new if data.bad_samples else None
        examples = list(evenly_spaced_examples(held_out, NUM_EXAMPLES, bad_held_out))
        stream = bad_samples.watch(batches(loader, start=first, workers=data.workers))
        to_global = sharding.from_local_rows(loader.batch_indices, data.batch_size)
        peak = peak_flops(jax.devices()[0].device_kind)
        speed = Speed(data.batch_size, peak and peak * jax.device_count())
        buffer = MetricsBuffer(workdir / "non_finite.json", restored.notes.get("recent", ()) if restored else ())
        flops = dict[tuple, int]()  # by the shapes of a batch
        vote = processes.Vote()
        with (
            open_rollout(config, objective, sharding, workdir) as rollout,
            Profile(workdir / "profile", profile, start_step=first, total=steps) as trace,
            MetricWriter(workdir, console, total=steps, start_step=first) as writer,
            Termination() as termination,
            Watchdog(config.train.watchdog_minutes) as watchdog,
        ):

            def save(step: int) -> None:
                notes = {"config": config.to_dict(), "recent": buffer.flush()}
                if not is_finite(state):
                    raise buffer.not_finite("the loss is finite, but not every number of the state after it")
                states.save(step, state, notes)

            def stop(step: int) -> NoReturn:
                console.out(f"SIGTERM: the same command goes on after step {step}", highlight=False)
                raise SystemExit(STOPPED)

            saved = first
            for step in range(first + 1, steps + 1):
                try:
                    # Batches may be long in coming, or never come. Several processes stop together, after a step.
                    with speed.waiting(), termination.interrupts(not processes.is_multiprocess()):
                        keys, batch, _ = next(stream)
                except TerminatedError:
                    if step - 1 > saved:
                        bad_samples.flush()
                        save(step - 1)
                    stop(step - 1)
                states.check_write()
                batch = sharding.shard(batch, to_global)
                shapes = tuple(array.shape for array in jax.tree.leaves(batch))
                if shapes not in flops:  # once for each bucket, which is compiled now
                    watchdog.pause()
                    flops[shapes] = step_flops(config, model_config, batch).model
                speed.add_flops(flops[shapes])
                with trace.step(step, buffer.flush):
                    if rollout is not None:  # what the run paints of this batch, with rewards, is what it learns from
                        batch = rollout(step, state, frozen, batch)
                    state, metrics = train_step(state, frozen, batch)
                    buffer.add(step, dict(zip(loader.batch_indices.tolist(), keys, strict=True)), metrics)
                is_last, stopping = step == steps, vote(termination.requested)
                logging, saving = (step % every == 0 or is_last for every in (config.train.log_every, config.train.save_every))
                if logging or saving or stopping:
                    bad_samples.flush()
                if logging:
                    writer.write(step, buffer.means(), speed.rates())
                if saving or stopping:
                    save(step)
                    saved = step
                if stopping:
                    stop(step)
                if examples and config.train.show_every and (step % config.train.show_every == 0 or is_last):
                    watchdog.pause()
                    params = state.ema | frozen | model_init.init_params(config.seed, cached_like)
                    sheet = write_sheet(workdir / "sheets" / f"{step:06}", objective, params, examples)
                    del params  # of those that a cache stands for
                    console.out(f"step {step}: {sheet}", highlight=False)
                watchdog.alive()

    # Export: averages, and the frozen parameters in float32, which are read again where a step had them in another dtype.
    if config.lora.rank:  # whose frozen parameters are where they were
        write_adapters(workdir / "lora", config, state.ema)
        console.out(f"wrote {workdir / 'lora'}", highlight=False)
        return
    params = state.ema | (frozen if compute_dtype(config.model.dtype) == jnp.float32 else {})
    del state, frozen  # the moments may be where the frozen parameters go
    exported = abstract_exported(objective, sharding)
    params |= model_init.init_params(config.seed, {path: leaf for path, leaf in exported.items() if path not in params})
    write_model(workdir / "model", config, objective, params, evenly_spaced_examples(held_out, SCALING_EXAMPLES, bad_held_out), tokenizer)
    bad_samples.flush()
    console.out(f"wrote {workdir / 'model'}", highlight=False)
