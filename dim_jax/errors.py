"""The exception for input that a user can correct, and checks that raise it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec


class InputError(ValueError):
    """What the user gave (a file, a value, a checkpoint) cannot be used.

    The message names the file, the line or the tensor, states the rule with the values that break it, and says what to do.
    The command line prints it without a traceback and exits with `exit_code`.
    """

    exit_code = 1


class SignalError(InputError):
    """A signal ended the work; the message says what was kept and how to go on. The exit code is that of a shell."""

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.exit_code = 128 + signal


def check_unicode(text: str, name: str) -> None:
    """Refuse a text with half a character (a lone surrogate). JSON can hold one, and so can an argument that is not UTF-8.

    Raises:
        InputError: names `name`, the half character and its position.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"U+{ord(text[error.start]):04X}"
        raise InputError(f"{name} is not valid Unicode text (half a character, {half}, at {error.start}). Give it as UTF-8.") from error


def listed(items: Sequence[str], separator: str = ", ", limit: int = 12) -> str:
    """The items in one line; after the first `limit` only their number, since a checkpoint can have a thousand wrong tensors."""
    more = len(items) - limit
    return separator.join([*items[:limit], f"and {more:,} more"] if more > 0 else items)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type where it has none: libraries raise errors without a text, and with a page of it."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def require_packages(*packages: str, extra: str, feature: str) -> None:
    """Refuse to start if optional packages are missing, rather than fail at the end of long work.

    Raises:
        InputError: `feature` needs packages that are not installed; names them and the extra that installs them.
    """
    missing = [name for name in packages if find_spec(name) is None]
    check(not missing, f"{feature} needs the package {', '.join(missing)}. Install it: pip install 'dim_jax[{extra}]'.")


def check(condition: object, message: str) -> None:
    """Raise an InputError with `message` unless the condition holds."""
    if not condition:
        raise InputError(message)


@contextmanager
def input_errors(message: Callable[[Exception], str], *errors: type[Exception]) -> Iterator[None]:
    """Turn `errors` that are raised within into an InputError, whose text `message(error)` makes; an InputError stays as it is."""
    try:
        yield
    except InputError:
        raise
    except errors as error:
        raise InputError(message(error)) from error


@contextmanager
def prefix_errors(prefix: object) -> Iterator[None]:
    """Put `prefix`, such as the file that is read, before the message of an InputError that is raised within."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{prefix}: {error}") from error
