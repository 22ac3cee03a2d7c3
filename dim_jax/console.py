"""What is shown to people: names and texts exactly as they are. `[draft]` is no markup, `:fire:` no emoji; nothing is coloured or broken.

A console is made here. What is said on one that may come from a caller goes through `Console.out`, which changes nothing on any console.
"""

from rich.console import Console


def open_console(*, stderr: bool = True, quiet: bool = False) -> Console:
    """A console of this process that prints texts as they are."""
    return Console(stderr=stderr, quiet=quiet, markup=False, emoji=False, highlight=False, soft_wrap=True)
