"""One training step as a function of arrays: what `dim train` runs and `dim compile` compiles for machines that are not here."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int

from dim_jax.config import Config
from dim_jax.errors import InputError
from dim_jax.models.module import parameters, with_parameters
from dim_jax.models.precision import compute_dtype
from dim_jax.rng import key_seed
from dim_jax.sharding import Sharding
from dim_jax.training import optim
from dim_jax.training.objectives import Objective

Tensors = dict[str, Any]  # path -> array, or an abstract one


class State(NamedTuple):
    """What a step changes; parameters by path, the trainable ones alone."""

    step: Int[Any, ""]
    params: Tensors
    ema: Tensors
    opt: Any


class Step(NamedTuple):
    """Compiled functions over one mesh, and what they take: abstract arrays that know their places."""

    abstract_state: State
    frozen: Tensors  # what does not learn, in the dtype of computation
    cached_params: Tensors  # the same, of the model but not of its learner: the step does without them
    exported: Tensors  # both as they are exported, in float32
    init_state: Callable[[Tensors], State]  # the first state from the parameters that learn, which it takes over
    train_step: Any  # (state, frozen, batch) -> (state, metrics); jitted, so that it can be lowered too
    finite: Callable[[State], Array]  # whether every number of a state is


def make_step(config: Config, objective: Objective, sharding: Sharding) -> Step:
    """The step of an objective: the parts that `config.trainable` names learn, those that `config.frozen` names are an argument beside the
    state, with no gradient and no optimizer state.

    Raises:
        InputError: a parameter is of a part that neither or both of them name; or more batches make an update than there are steps.
    """
    how = config.optim
    if not 1 <= how.accumulate <= config.train.steps:
        raise InputError(f"config.optim.accumulate is {how.accumulate}: it must be from 1 to train.steps, {config.train.steps}.")
    updates = config.train.steps // how.accumulate
    schedule = optim.schedule(how.learning_rate, warmup_steps=how.warmup_steps, cosine=how.cosine, steps=updates)
    optimizer = optim.adamw(
        schedule, weight_decay=how.weight_decay, clip_global_norm=how.clip_global_norm, betas=tuple(how.betas), eps=how.eps,
        accumulate=how.accumulate, undecayed=tuple(how.undecayed),
    )  # fmt: skip

    def begin(params: Tensors) -> State:
        return State(jnp.int32(0), params, jax.tree.map(jnp.copy, params), optimizer.init(params))

    def run(state: State, frozen: Tensors, batch: Any) -> tuple[State, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.key(key_seed(config.seed, "steps")), state.step)

        def loss(params: Tensors) -> tuple[Array, dict[str, Array]]:
            return objective.loss(with_parameters(objective.trainable_model, params | frozen), batch, key)

        with jax.sharding.use_abstract_mesh(sharding.mesh.abstract_mesh):  # where `layers.shard_batch` looks
            (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        assert grads.keys().isdisjoint(frozen), "a frozen parameter has a gradient"
        change, opt = optimizer.update(grads, state.opt, state.params)
        params: Any = optax.apply_updates(state.params, change)
        update = state.step // how.accumulate  # updates before this step; between two of them the average rests too
        rests = (state.step + 1) % how.accumulate != 0
        keep = jnp.where(rests, 1.0, jnp.minimum(how.ema_decay, (1 + update) / (10 + update)))
        ema: Any = optax.incremental_update(params, state.ema, 1 - keep)
        metrics |= {"loss": value, "grad_norm": optax.tree.norm(grads), "learning_rate": jnp.asarray(schedule(update))}
        return State(state.step + 1, params, ema, opt), metrics

    def placed(tree: Any) -> Any:
        places = sharding.state_shardings(tree)
        return jax.tree.map(lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree, places)

    whole, shapes = parameters(objective.model), parameters(objective.trainable_model)
    declared = config.trainable, config.frozen
    learns, rests = ({path: shape for path, shape in whole.items() if path.split(".")[0] in parts} for parts in declared)
    if stray := sorted(whole.keys() - (learns.keys() ^ rests.keys())):
        raise InputError(f"{stray[0]} (of {len(stray)}): name its part once, in config.trainable or in config.frozen.")
    held = {path: jax.ShapeDtypeStruct(leaf.shape, compute_dtype(config.model.dtype)) for path, leaf in rests.items()}
    like = placed(jax.eval_shape(begin, learns))
    places = jax.tree.map(lambda leaf: leaf.sharding, like)
    return Step(
        like,
        placed({path: leaf for path, leaf in held.items() if path in shapes}),
        placed({path: leaf for path, leaf in held.items() if path not in shapes}),
        placed(rests),
        jax.jit(begin, out_shardings=places, donate_argnums=0),
        # Said of the outputs too, or the compiler would choose, and the second step would be another program than the first.
        jax.jit(run, out_shardings=(places, sharding.replicated), donate_argnums=0),
        jax.jit(_finite),
    )


def _finite(state: State) -> Bool[Array, ""]:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state)]).all()
