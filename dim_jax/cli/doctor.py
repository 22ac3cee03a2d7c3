"""The command `dim doctor`: one call of the library, a line a check out."""

from typing import Annotated

import typer

from dim_jax.console import open_console


def doctor(
    checkpoint: Annotated[str | None, typer.Option(help="A checkpoint to open (not to read). Default: the bundled nano model.")] = None,
) -> None:
    """Check this machine: versions, devices, exact products, folders, a checkpoint. Exit code 1: something is wrong, with its remedy."""
    from dim_jax.doctor import diagnose
    from dim_jax.weights.bundled import bundled_checkpoint

    console, healthy = open_console(stderr=False), True
    for check in diagnose(checkpoint or bundled_checkpoint()):
        console.out(f"{'WRONG' if check.remedy else 'ok':7}{check.name}: {check.detail}", style="red" if check.remedy else None)
        if check.remedy:
            healthy = False
            console.out(f"{'':7}{check.remedy}")
    if not healthy:
        raise typer.Exit(1)
