"""Parameters of a module by path, as checkpoints and the weight table name them: attribute names joined by dots."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from flax import nnx

Module = TypeVar("Module", bound=nnx.Module)


def parameters(module: nnx.Module) -> dict[str, Any]:
    """Path -> array (or abstract array) of every parameter."""
    flat = nnx.to_flat_state(nnx.state(module, nnx.Param))
    return {".".join(map(str, path)): variable.get_value() for path, variable in flat}


def shapes(module: nnx.Module) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every parameter."""
    return {path: tuple(value.shape) for path, value in parameters(module).items()}


def with_parameters(module: Module, tensors: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> Module:
    """The same module holding the arrays `tensors` (path -> array); an abstract module becomes a real one.

    Raises:
        KeyError: a parameter has no tensor, or a tensor no parameter.
    """
    tensors = dict(tensors)
    graphdef, state = nnx.split(module)
    flat = nnx.to_flat_state(state)
    variables = {".".join(map(str, path)): (path, variable) for path, variable in flat}
    if variables.keys() != tensors.keys():
        raise KeyError(
            f"parameters without a tensor: {sorted(variables.keys() - tensors.keys())}; "
            f"tensors without a parameter: {sorted(tensors.keys() - variables.keys())}"
        )
    filled = [(path, variable.replace(tensors[name])) for name, (path, variable) in variables.items()]
    return nnx.merge(graphdef, nnx.from_flat_state(filled))
