"""The command `dim design`: options in, one call of the library, one line out."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

console = Console(stderr=True)

BaseUrl = Annotated[str | None, typer.Option(help="Of the server, such as http://localhost:8000/v1.")]
Concurrency = Annotated[int, typer.Option(min=1, help="Calls under way at once.")]
RequestsPerMinute = Annotated[float | None, typer.Option(help="What the account allows.")]
TokensPerMinute = Annotated[float | None, typer.Option(help="What the account allows, of questions and answers.")]
BudgetTokens = Annotated[int | None, typer.Option(help="For the whole output, with what it has cost before.")]
BudgetDollars = Annotated[float | None, typer.Option(help="The same in dollars; needs --prices.")]
Prices = Annotated[Path | None, typer.Option(help='JSON, dollars for a million tokens: {"openai:gpt-4o": {"input": 2.5, "output": 10}}.')]
TimeLimit = Annotated[float | None, typer.Option(help="Seconds, after which nothing new is asked.")]
CallLimit = Annotated[float, typer.Option(help="Seconds for one call.")]
Tries = Annotated[int, typer.Option(min=1, help="Of one question, before it counts as failed.")]
MaxTokens = Annotated[int, typer.Option(min=1, help="Of one answer; models that think first need more.")]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Ask again what failed before.")]


def design(
    designer: Annotated[str, typer.Option(metavar="KIND:NAME", help="Who writes: as for `dim edit`, and never none.")],
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
    base_url: BaseUrl = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Whose encoder `local` writes with. Default: the bundled nano model.")] = None,
    concurrency: Concurrency = 8,
    requests_per_minute: RequestsPerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
    budget_tokens: BudgetTokens = None,
    budget_dollars: BudgetDollars = None,
    prices: Prices = None,
    time_limit: TimeLimit = None,
    call_limit: CallLimit = 180.0,
    tries: Tries = 6,
    max_tokens: MaxTokens = 2048,
    retry_failed: RetryFailed = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="One edit: replace an existing text file.")] = False,
) -> None:
    """Write blueprints: for one picture, or for the rows of a jsonl."""
    from dim_jax.designer import design as library
    from dim_jax.designer.choice import Choice
    from dim_jax.designer.pace import Limits, Price
    from dim_jax.folders import check_file, new_file

    choice = Choice.read(designer)
    if choice.kind == "none":
        raise typer.BadParameter("Name somebody who writes.", param_hint="--designer")
    if (table is None) == (image is None or prompt is None) or (table is not None and output is None):
        raise typer.BadParameter("Give ROWS.jsonl and -o, or --image and --prompt.")
    limits = Limits(
        concurrency, requests_per_minute, tokens_per_minute, budget_tokens, budget_dollars, time_limit, tries
    )  # fmt: skip
    price = Price.read(prices, designer) if prices else None
    if image is not None and output is not None:
        check_file(output, overwrite=overwrite)
    options: dict[str, Any] = {"base_url": base_url, "max_tokens": max_tokens, "time_limit": call_limit}
    writer = _local(choice.name or checkpoint) if choice.kind == "local" else choice.open(**options)
    if table is not None and output is not None:
        done = library.rows(
            table, output, writer, limits, pictures=pictures, price=price, retry_failed=retry_failed, progress=console.is_terminal
        )
        typer.echo(done, err=True)
    elif image is not None and prompt is not None:
        text = library.blueprint(image, prompt, writer, row_id=row_id, keep=choice.costs)
        if output is None:
            typer.echo(text)
            return
        with new_file(output) as scratch:
            scratch.write_text(text + "\n", encoding="utf-8")
        typer.echo(f"wrote {output}", err=True)


def _local(folder: str | Path | None) -> Any:
    from dim_jax.bundled import bundled_checkpoint
    from dim_jax.designer.local import LocalDesigner  # imports JAX

    return LocalDesigner.from_pretrained(folder or bundled_checkpoint())
