"""The one exception for input that a user can mend."""

from importlib.util import find_spec


class InputError(ValueError):
    """What the user gave (a file, a value, a checkpoint) cannot be used.

    The message names the file, the line or the tensor, states the rule with the values that break it, and says what to do.
    The command line prints it without a traceback and exits with 1.
    """


def require(*packages: str, extra: str, what: str) -> None:
    """Refuse early, rather than at the end of long work, where optional packages are missing.

    Raises:
        InputError: `what` needs packages that are not there; it names them and the extra that brings them.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise InputError(f"{what} needs the package {', '.join(missing)}. Install it: pip install 'dim_jax[{extra}]'.")
