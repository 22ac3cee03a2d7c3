"""The command `dim push`: options in, one call of the library, one line out."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dim_jax.console import open_console


class Layout(StrEnum):
    """What `dim push` can write."""

    dim = "dim"
    diffusers = "diffusers"
    peft = "peft"


def push(
    checkpoint: Annotated[str, typer.Argument(help="What to push: a checkpoint in any format, or a LoRA; also gs://BUCKET/...")],
    name: Annotated[str, typer.Argument(metavar="ORG/NAME", help="The model on the Hugging Face hub, which is made if there is none.")],
    to: Annotated[
        Layout, typer.Option(help="Its files there: the published names (dim) or diffusers; of a LoRA dim, peft, diffusers.")
    ] = Layout.dim,
    revision: Annotated[str | None, typer.Option(metavar="BRANCH", help="Made if there is none. Default: main.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new model private.")] = False,
    message: Annotated[str | None, typer.Option(help="Of the commit.")] = None,
    license_id: Annotated[
        str | None, typer.Option("--license", metavar="ID", help="Of the weights, as the hub names it, such as apache-2.0.")
    ] = None,
    run: Annotated[
        str | None, typer.Option(metavar="WORKDIR", help="Of the training, for the card. Default: the one that CHECKPOINT lies in.")
    ] = None,
    evaluation: Annotated[
        list[str] | None, typer.Option(metavar="OUT", help="Of `dim evaluate`, for the card. May be given several times.")
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(metavar="FOLDER", help="A data set with its card. Default: as the run names them.")
    ] = None,
    card: Annotated[Path | None, typer.Option(metavar="FILE", help="Your own card, instead of one that is made.")] = None,
) -> None:
    """Push a model to the Hugging Face hub, with a card of what its run left behind."""
    if card is not None and (run or evaluation or data or license_id):
        raise typer.BadParameter("your own card says it all: leave out --run, --evaluation, --data and --license.", param_hint="--card")
    from dim_jax.publishing.push import push_to_hub  # imports JAX, which takes seconds

    commit = push_to_hub(
        checkpoint, name, to=to.value, revision=revision, private=private, message=message, license=license_id, card=card, run=run,
        evaluations=evaluation or (), data=data or (), console=open_console(stderr=False),
    )  # fmt: skip
    typer.echo(f"pushed {commit}", err=True)
