"""The state of a training run: its dtypes and shardings, how it begins, and what the gradients of a step make of it."""

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Int

from dim_jax.config import Config
from dim_jax.models.module import parameters
from dim_jax.models.precision import compute_dtype
from dim_jax.models.quantized import Quantize, abstract_like, with_quantized
from dim_jax.sharding import Sharding
from dim_jax.training.lora import adapted_layers
from dim_jax.training.objectives import Objective, abstract_model, quantization
from dim_jax.training.optim import ema_decay, make_optimizer
from dim_jax.weights.lora import factor_shapes
from dim_jax.weights.model_config import TEACHER, ModelConfig
from dim_jax.weights.table import Shape

Params = dict[str, Any]  # path -> array, or an abstract one


class State(NamedTuple):
    """The values that a step changes; only trainable parameters."""

    step: Int[Any, ""]
    params: Params
    ema: Params
    opt: Any


def abstract_params(
    model_config: ModelConfig,
    sharding: Sharding,
    components: Collection[str],
    dtype: DTypeLike = jnp.float32,
    quantize: Quantize | None = None,
) -> Params:
    """Shape, dtype and sharding of every parameter of some components, with the kernels of large layers quantized."""
    if quantize:
        model = with_quantized(abstract_model(model_config, components, dtype), quantize)
        return dict(abstract_like(parameters(model), dtype, sharding.param_sharding))
    return _abstract({path: shape for path, shape in model_config.shapes().items() if path.split(".")[0] in components}, sharding, dtype)


def abstract_trainable(config: Config, model_config: ModelConfig, sharding: Sharding) -> Params:
    """The trainable parameters: all of `config.trainable`, or in a LoRA the factors of its adapters."""
    if layers := adapted_layers(config, model_config.shapes()):
        return _abstract(factor_shapes(layers, config.lora.rank), sharding, jnp.float32)
    return abstract_params(model_config, sharding, config.trainable)


def _abstract(shapes: Mapping[str, Shape], sharding: Sharding, dtype: DTypeLike) -> Params:
    return {path: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.param_sharding(path)) for path, shape in shapes.items()}


def abstract_frozen(objective: Objective, sharding: Sharding) -> tuple[Params, Params]:
    """The frozen parameters in the dtype of computation: those that a step reads, and those that a cache replaces."""
    config, model_config = objective.config, objective.model_config
    components = (*config.frozen, *(config.trainable if config.lora.rank else ()))
    frozen = abstract_params(model_config, sharding, components, compute_dtype(config.model.dtype), quantization(config))
    cached = {path: frozen.pop(path) for path in list(frozen) if path.split(".")[0] not in objective.components}
    return frozen, cached


def abstract_exported(objective: Objective, sharding: Sharding) -> Params:
    """The frozen parameters that go into the checkpoint of a run, in float32."""
    config = objective.config
    return abstract_params(objective.model_config, sharding, [name for name in config.frozen if name != TEACHER])


def abstract_state(config: Config, model_config: ModelConfig, sharding: Sharding) -> State:
    """Shapes, dtypes and shardings of a run's state: moments and averages have their parameter's sharding."""
    state = jax.eval_shape(partial(_init, config), abstract_trainable(config, model_config, sharding))
    shardings = sharding.state_shardings(state)
    return jax.tree.map(lambda leaf, leaf_sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf_sharding), state, shardings)


def init_state(config: Config, params: Params, abstract: State) -> State:
    """The initial state of a run, in the shardings of `abstract`. It donates `params`."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.jit(partial(_init, config), out_shardings=shardings, donate_argnums=0)(params)


def _init(config: Config, params: Params) -> State:
    optimizer, _ = make_optimizer(config)
    init = optimizer.init if config.optim.accumulate == 1 else optax.MultiSteps(optimizer, config.optim.accumulate).init
    return State(jnp.int32(0), params, jax.tree.map(jnp.copy, params), init(params))


def next_state(config: Config, state: State, grads: Params) -> State:
    """The state after a step with these gradients: parameters as the optimizer changes them, and their averages.

    Of `config.optim.accumulate` steps only the last one updates, by the mean of the gradients of all, which is what is clipped. The state
    is that of `optax.MultiSteps`, which computes an update in every step and drops all others.
    """
    optimizer, _ = make_optimizer(config)

    def update(grads: Params, opt: Any) -> tuple[Any, Any, Any]:
        changes, opt = optimizer.update(grads, opt, state.params)
        params: Any = optax.apply_updates(state.params, changes)
        return params, optax.incremental_update(params, state.ema, 1 - ema_decay(config, state.step)), opt

    if config.optim.accumulate == 1:
        return State(state.step + 1, *update(grads, state.opt))
    before, is_last = state.opt.mini_step, state.opt.mini_step == config.optim.accumulate - 1
    # The first gradients take the place of the last mean: to set that to zero would take a pass over memory.
    mean = jax.tree.map(lambda mean, new: jnp.where(before == 0, new, mean + (new - mean) / (before + 1)), state.opt.acc_grads, grads)
    opt = state.opt.inner_opt_state
    params, ema, opt = jax.lax.cond(is_last, lambda: update(mean, opt), lambda: (state.params, state.ema, opt))
    accumulated = state.opt._replace(
        mini_step=jnp.where(is_last, 0, before + 1), gradient_step=state.opt.gradient_step + is_last, inner_opt_state=opt, acc_grads=mean
    )
    return State(state.step + 1, params, ema, accumulated)


@jax.jit
def is_finite(state: State) -> Bool[Array, ""]:
    """Whether every number of a state is finite."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state)]).all()
