"""Consoles that print texts exactly as they are: `[draft]` is not markup, `:fire:` is not an emoji, nothing is coloured or wrapped.

Code that may get its console from a caller prints with `Console.out`, which changes nothing on any console.
"""

from rich.console import Console


def open_console(*, stderr: bool = True, quiet: bool = False) -> Console:
    """A console of this process that prints texts as they are."""
    return Console(stderr=stderr, quiet=quiet, markup=False, emoji=False, highlight=False, soft_wrap=True)
