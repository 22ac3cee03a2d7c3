"""The options of `dim evaluate` about judges and the report, and the calls that they lead to."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from dim_jax.cli.designer_options import DesignerOptions
from dim_jax.cli.paint import checkpoint_or_bundled
from dim_jax.errors import InputError


@dataclass(frozen=True)
class JudgeOptions:
    """Who judges, with which texts, and what the report says."""

    judge: Annotated[
        list[str] | None, typer.Option(metavar="KIND:NAME", help="Who judges results: openai:gpt-4o, local:FOLDER ... May be given twice.")
    ] = None
    judge_base_url: Annotated[str | None, typer.Option(help="Of the judge's server, such as http://localhost:8000/v1.")] = None
    prompts: Annotated[Path | None, typer.Option(help="JSON of questions by name, such as the makers' own, instead of ours.")] = None
    strict_official: Annotated[
        bool,
        typer.Option("--strict-official", help="Also count as the makers' scripts do, faults included; --seed for their random numbers."),
    ] = False
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(metavar="A B", help="Only report: two folders of evaluations beside each other, into OUT.")
    ] = None

    def protocol(self, benchmark: Any) -> Any:
        """Of a benchmark, or None if it has none. Raises InputError if it has none, and there is a judge; or --prompts cannot be used."""
        from dim_jax.evals.protocols import protocol

        if benchmark.protocol is None:
            if self.judge or self.prompts:
                raise InputError(f"{benchmark.title} is not judged, it is measured alone. Leave out --judge and --prompts.")
            return None
        judging_protocol = protocol(benchmark.protocol)
        return judging_protocol if self.prompts is None else judging_protocol.with_prompts(self.prompts)

    def judges(self, options: DesignerOptions, checkpoint: str | None) -> list[Any]:
        """The designers that judge. What can be refused is refused now, before anything is painted."""
        from dim_jax.designer.choice import DesignerSpec
        from dim_jax.designer.stage_runner import DesignerFactory

        options, factories = replace(options, base_url=self.judge_base_url), []
        for spec in self.judge or ():
            choice = DesignerSpec.parse(spec)
            if choice.kind == "none":
                raise typer.BadParameter("Give a model that judges.", param_hint="--judge")
            opened = [] if choice.kind == "local" else [options.open(choice)]
            # A server's client belongs to one stage, so each track has its own; a local model is read once.
            factories.append(
                DesignerFactory(
                    lambda choice=choice, opened=opened: _open(choice, opened, options, checkpoint),
                    options.price(spec) if choice.online else None,
                )
            )
        return factories


def _open(choice: Any, opened: list[Any], options: DesignerOptions, checkpoint: str | None) -> Any:
    if choice.kind == "local" and not opened:
        from dim_jax.designer.local import LocalDesigner  # imports JAX

        opened.append(LocalDesigner.from_pretrained(choice.name or checkpoint_or_bundled(checkpoint)))
    return options.open(choice) if choice.online else opened[0]


def ask_judges(
    judges: list[Any], protocol: Any, cases: list[Any], out: Path, options: DesignerOptions, log: Callable[[str], None], progress: bool
) -> None:
    """Every judge about every track, all within one budget."""
    from dim_jax.designer.stage_runner import StageRunner
    from dim_jax.evals.judge import judge

    runner = StageRunner(options.limits(), options.retry_failed, progress, log)
    for designer in judges:
        judge(out, cases, protocol, designer, runner)


def write_report(
    benchmark: Any, cases: list[Any], out: Path, judging: JudgeOptions, options: DesignerOptions, seed: int, log: Callable[[str], None]
) -> None:
    """Of one run, or of the two that --compare names."""
    from dim_jax.evals import report
    from dim_jax.storage.paths import read_object

    runs = {"run": out} if judging.compare is None else _run_names(judging.compare)
    priced = read_object(options.prices) if options.prices else {}

    def price(judge: str) -> Any:
        return options.price(judge) if judge in priced else None

    report.write(
        out, benchmark, cases, runs, judging.protocol(benchmark), price=price, official_seed=seed if judging.strict_official else None
    )
    log(f"wrote {out / 'report.html'}, with report.md and report.json beside it")


def _run_names(folders: tuple[Path, Path]) -> dict[str, Path]:
    """The runs by the shortest ends of their paths that differ. Raises InputError if it is one folder."""
    first, second = (folder.absolute().parts for folder in folders)
    for length in range(1, max(len(first), len(second)) + 1):
        names = ["/".join(parts[-length:]) for parts in (first, second)]
        if names[0] != names[1]:
            return dict(zip(names, folders, strict=True))
    raise InputError(f"{folders[0]}: is named twice. Compare two evaluations.")
