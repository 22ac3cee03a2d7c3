"""What commands have in common: options that several share, declared once as the fields of a dataclass; and where their paths lie."""

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

from dim_jax.errors import InputError

SOLVER_NAMES = "{solvers}"  # stands for the names in a help text, which are read when it is shown


class Commands(typer.Typer):
    """Commands whose options of type Path are of this machine; those that may name a bucket are texts, for `dim_jax.storage.paths.as_path`.

    Their help and errors are plain lines: panels would break names, and take what stands in brackets for markup.
    """

    def __init__(self, **options: Any):
        super().__init__(rich_markup_mode=None, **options)

    def command(self, name: str | None = None, **options: Any) -> Callable[[Any], Any]:
        return super().command(name, cls=_Command, **options)


class _Command(TyperCommand):
    def format_options(self, ctx: Any, formatter: Any) -> None:
        for parameter in self.params:
            if SOLVER_NAMES in (text := getattr(parameter, "help", None) or ""):
                from dim_jax.diffusion import solvers  # imports numpy

                vars(parameter)["help"] = text.replace(SOLVER_NAMES, " or ".join(solvers.SOLVER_NAMES))
        super().format_options(ctx, formatter)

    def invoke(self, ctx: Any) -> Any:
        from dim_jax.storage.paths import scheme_of

        for value in ctx.params.values():
            if isinstance(value, Path) and scheme_of(value):
                raise InputError(f"{str(value).replace(':/', '://', 1)}: a path of this machine is needed here. Copy what lies elsewhere.")
        return super().invoke(ctx)


def mesh_sizes(text: str | None) -> dict[str, int] | None:
    """Sizes of mesh axes from --devices: a number or "all" for the rows of a batch, or AXIS=N,...; None: one device."""
    if text is None:
        return None
    words = f"data={-1 if text == 'all' else text}" if text == "all" or text.isdecimal() else text
    pairs = [word.partition("=") for word in words.split(",")]
    sizes = {axis: int(size) for axis, _, size in pairs if size.removeprefix("-").isdecimal()}
    if len(sizes) < len(pairs):
        raise typer.BadParameter(f"{text}: write a number, all, or AXIS=N,... such as data=2,fsdp=2.", param_hint="--devices")
    return sizes


def with_options(**shared: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator of commands: one that takes an argument `name` of a dataclass gets its fields as options after its own ones."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        fields = {name: inspect.signature(kind).parameters for name, kind in shared.items()}
        own_parameters = {name: parameter for name, parameter in inspect.signature(command).parameters.items() if name not in shared}

        @wraps(command)
        def wrapped(**options: Any) -> None:
            groups = {name: kind(**{field: options[field] for field in fields[name]}) for name, kind in shared.items()}
            command(**{name: options[name] for name in own_parameters}, **groups)

        parameters = [parameter for group in (own_parameters, *fields.values()) for parameter in group.values()]
        parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
        wrapped.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]
        wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return wrapped

    return decorate
