"""The commands of `dim build-data`: options in, one call of the library, one line out."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from dim_jax.cli_design import (
    BaseUrl,
    BudgetDollars,
    BudgetTokens,
    CallLimit,
    Concurrency,
    MaxTokens,
    Prices,
    RequestsPerMinute,
    RetryFailed,
    TimeLimit,
    TokensPerMinute,
    Tries,
)

console = Console(stderr=True)
Folder = Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing data set.")]
Config = Annotated[Path | None, typer.Option(help="TOML with what differs from the defaults.")]
Designer = Annotated[str | None, typer.Option(metavar="KIND:NAME", help="Who writes: openai:gpt-4o, vllm:MODEL ..., as for `dim design`.")]


def build_edit(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make, or to go on with.")],
    source: Annotated[
        list[str], typer.Option(metavar="KIND:PATH", help="Pairs to build from, such as pairs:mine.jsonl. May be given several times.")
    ],
    designer: Designer = None,
    assessor: Annotated[str | None, typer.Option(metavar="KIND:NAME", help="Who judges the instructions. Default: the designer.")] = None,
    config: Config = None,
    until: Annotated[str, typer.Option(metavar="STAGE", help="The last stage to run: score, keep, assess, design or write.")] = "write",
    base_url: BaseUrl = None,
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
) -> None:
    """Rebuild DIM-Edit: filter edit pairs, judge and mend their instructions, write blueprints. Goes on where it was stopped."""
    from dim_jax.construction.config import read_config
    from dim_jax.construction.edit import STAGES, build
    from dim_jax.construction.sources import open_source

    if until not in STAGES:
        raise typer.BadParameter(f"Stages are {', '.join(STAGES)}.", param_hint="--until")
    settings = read_config("dim_edit.toml", config)
    asking = _asking(
        concurrency, requests_per_minute, tokens_per_minute, budget_tokens, budget_dollars, time_limit, tries, retry_failed
    )  # fmt: skip
    options = {"base_url": base_url, "max_tokens": max_tokens, "time_limit": call_limit}
    writer = _writer(designer, prices, options)
    counts = build(
        folder, [open_source(one) for one in source], settings, _writer(assessor, prices, options) or writer, writer, asking,
        until=until, console=console,
    )  # fmt: skip
    parts = {"keep": ("filter", "kept"), "assess": ("assess", "answered"), "design": ("design", "answered")}
    told = [f"{stage} {counts[part][name]}" for stage, (part, name) in parts.items() if part in counts]
    typer.echo(f"{folder}: {counts['filter']['pairs']} pairs; {', '.join(told)}", err=True)


def _asking(concurrency, requests, tokens, budget_tokens, budget_dollars, time_limit, tries, retry_failed):
    from dim_jax.construction.asking import Asking
    from dim_jax.designer.pace import Limits

    limits = Limits(concurrency, requests, tokens, budget_tokens, budget_dollars, time_limit, tries)
    return Asking(limits, retry_failed, console.is_terminal, lambda line: typer.echo(line, err=True))


def _writer(spelling: str | None, prices: Path | None, options: dict):
    from dim_jax.construction.asking import Writer
    from dim_jax.designer.choice import Choice
    from dim_jax.designer.pace import Price

    if spelling is None:
        return None
    choice = Choice.read(spelling)
    if not choice.costs:
        raise typer.BadParameter(f'"{spelling}": name a model behind a server.', param_hint="--designer")
    choice.open(**options)  # a key that is missing is told before long work
    return Writer(lambda: choice.open(**options), Price.read(prices, spelling) if prices else None)


def build_emoji(
    folder: Folder,
    packages: Annotated[Path | None, typer.Option(help="Folder with the archives (.tgz); by default npm fetches them.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Make edit pairs, captions and blueprints of the emoji of four npm packages."""
    from dim_jax.data.emoji.build import build

    _pairs(folder, build(folder, archives=packages, overwrite=overwrite, console=console))


def build_text(
    folder: Folder,
    scenes: Annotated[int, typer.Option(help="Each is up to six pictures and ten pairs.")] = 2000,
    side: Annotated[int, typer.Option(help="Of the pictures, in pixels; training scales them as it needs.")] = 256,
    pictures: Annotated[Path | None, typer.Option(help="Folder with pictures to write on. Default: plain colours and patterns.")] = None,
    fonts: Annotated[Path | None, typer.Option(help="Folder with fonts (.ttf, .otf, .ttc) beside Pillow's; mind their licences.")] = None,
    seed: Annotated[int, typer.Option(help="Of the scenes; the split does not depend on it.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Make edit pairs, captions and blueprints of changed text: other words, typefaces, colours, sizes and places."""
    from dim_jax.data.text.build import build

    options = {"scenes": scenes, "side": side, "pictures": pictures, "font_folder": fonts, "seed": seed}
    _pairs(folder, build(folder, **options, overwrite=overwrite, console=console))


def _pairs(folder: Path, statistics: dict[str, Any]) -> None:
    total = statistics["total"]
    typer.echo(f"wrote {folder}: {total['train']} pairs to train on, {total['test']} to test", err=True)
