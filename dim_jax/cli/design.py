"""The command `dim design`: options in, one call of the library, one line out."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dim_jax.cli.designer_options import DesignerOptions, with_designer_options
from dim_jax.console import open_console

console = open_console()


@with_designer_options
def design(
    designer: Annotated[str, typer.Option(metavar="KIND:NAME", help="Who writes: as for `dim edit`, and never none.")],
    options: DesignerOptions,
    table: Annotated[
        Path | None, typer.Argument(metavar="[ROWS.jsonl]", help="Many edits: objects with id, image_path, and the instruction as prompt.")
    ] = None,
    image: Annotated[Path | None, typer.Option(help="One edit: the picture.")] = None,
    prompt: Annotated[str | None, typer.Option(help="One edit: the instruction.")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="One edit: a text file. Many: a jsonl, which is continued if it is there.")
    ] = None,
    pictures: Annotated[Path | None, typer.Option(help="Folder that image_path starts from. Default: that of the rows.")] = None,
    row_id: Annotated[str | None, typer.Option("--id", help="One edit, of a file: designer. Default: the picture's name.")] = None,
    checkpoint: Annotated[str | None, typer.Option(help="Whose encoder `local` writes with. Default: the bundled nano model.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="One edit: replace an existing text file.")] = False,
) -> None:
    """Write blueprints: for one picture, or for the rows of a jsonl."""
    from dim_jax.designer import design as library
    from dim_jax.designer.choice import DesignerSpec
    from dim_jax.storage.folders import check_file, write_text

    choice = DesignerSpec.parse(designer)
    if choice.kind == "none":
        raise typer.BadParameter("Give a designer that writes.", param_hint="--designer")
    if (table is None) == (image is None or prompt is None) or (table is not None and output is None):
        raise typer.BadParameter("Give ROWS.jsonl and -o, or --image and --prompt.")
    limits, price = options.limits(), options.price(designer)
    if image is not None and output is not None:
        check_file(output, overwrite=overwrite)
    writer = _local(choice.name or checkpoint) if choice.kind == "local" else options.open(choice)
    if table is not None and output is not None:
        summary = library.write_blueprints(
            table, output, writer, limits, pictures=pictures, price=price, retry_failed=options.retry_failed, progress=console.is_terminal
        )
        typer.echo(summary, err=True)
    elif image is not None and prompt is not None:
        text = library.write_blueprint(image, prompt, writer, row_id=row_id)
        if output is None:
            typer.echo(text)
            return
        write_text(output, text + "\n")
        typer.echo(f"wrote {output}", err=True)


def _local(folder: str | Path | None) -> Any:
    from dim_jax.designer.local import LocalDesigner  # imports JAX
    from dim_jax.weights.bundled import bundled_checkpoint

    return LocalDesigner.from_pretrained(folder or bundled_checkpoint())
