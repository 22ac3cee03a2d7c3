"""Options that several commands share, declared once as the fields of a dataclass."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any


def with_options(**shared: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator of commands: one that takes an argument `name` of a dataclass gets its fields as options behind its own ones."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        fields = {name: inspect.signature(kind).parameters for name, kind in shared.items()}
        own = {name: one for name, one in inspect.signature(command).parameters.items() if name not in shared}

        @wraps(command)
        def wrapped(**options: Any) -> None:
            made = {name: kind(**{field: options[field] for field in fields[name]}) for name, kind in shared.items()}
            command(**{name: options[name] for name in own}, **made)

        parameters = [one for group in (own, *fields.values()) for one in group.values()]
        parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in parameters]
        wrapped.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]
        wrapped.__annotations__ = {one.name: one.annotation for one in parameters}
        return wrapped

    return decorate
