"""The command `dim verify`: options in, one call of the library, table and verdict out."""

from typing import Annotated

import typer

from dim_jax.cli.paint import Overwrite, Precision, Tokenizer
from dim_jax.console import open_console


def verify(
    checkpoint: Annotated[str, typer.Argument(help="Folder, file or gs:// address of a Draw-In-Mind in any format.")],
    against: Annotated[
        str, typer.Option(metavar="torch|FILE", help="PyTorch on this machine, or a file that --record wrote on another.")
    ] = "torch",
    record: Annotated[str | None, typer.Option(metavar="FILE", help="Also write what PyTorch computes, for --against elsewhere.")] = None,
    dtype: Annotated[Precision, typer.Option(help="Of our parameters and computation; PyTorch's are float32.")] = Precision.float32,
    resolution: Annotated[
        int | None, typer.Option(min=1, help="Pixels a side of the edit. Default: 256, or less as the checkpoint says; as in FILE.")
    ] = None,
    tokenizer: Tokenizer = None,
    overwrite: Overwrite = False,
) -> None:
    """Check a checkpoint: its tensors, and each stage of an edit with PyTorch. Exit code 1: something is off, the last line says what."""
    if against != "torch" and (record is not None or resolution is not None):
        raise typer.BadParameter("--record and --resolution go with --against torch; a file has PyTorch's results and its resolution.")
    from dim_jax.storage.paths import as_path
    from dim_jax.verify.verify import verify

    folder = None if record is None else as_path(record)
    agrees = verify(
        checkpoint, against=against, record=folder, dtype=dtype.value, resolution=resolution, tokenizer=tokenizer, overwrite=overwrite,
        console=open_console(stderr=False),
    )  # fmt: skip
    if not agrees:
        raise typer.Exit(1)
