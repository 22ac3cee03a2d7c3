"""The command `dim evaluate`: options in, one call of the library for each stage, the means out."""

from enum import StrEnum
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

import typer

from dim_jax.cli.designer_options import DesignerOptions, local_designer, local_judge
from dim_jax.cli.judging import JudgeOptions, ask_judges, write_report
from dim_jax.cli.options import with_options
from dim_jax.cli.paint import SamplingOptions, checkpoint_or_bundled
from dim_jax.console import open_console
from dim_jax.errors import InputError, check

console = open_console()
BY_RULE = {"num_steps", "solver", "guidance_scale", "best_of"}  # settings that may be others than the checkpoint's with -o


class Stage(StrEnum):
    """A part of an evaluation that can be run alone."""

    generate = "generate"
    judge = "judge"
    report = "report"


class Text(StrEnum):
    """The prompt of an edit."""

    instruction = "instruction"
    blueprint = "blueprint"


class Holdout(StrEnum):
    """Which held-out pairs: those of the report, or others to choose by."""

    test = "test"
    selection = "selection"


@with_options(sampling=SamplingOptions, judging=JudgeOptions, options=DesignerOptions)
def evaluate(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The benchmark, such as imgedit; a wrong name lists all.")],
    data: Annotated[str, typer.Option(help="Folder of the benchmark as its makers ship it; of emoji also gs://BUCKET/...")],
    out: Annotated[Path | None, typer.Option(help="Folder for pictures, answers and scores; an evaluation that is there goes on.")] = None,
    tracks: Annotated[
        str | None,
        typer.Option(help="Of direct, designed (blueprints), reflected (rounds). Default: direct, and designed where there is a designer."),
    ] = None,
    designer: Annotated[
        str, typer.Option(metavar="KIND:NAME", help="Who writes blueprints and looks at results: as for `dim edit`.")
    ] = "none",
    rounds: Annotated[
        int | None,
        typer.Option(
            min=1, help="Of the track reflected, at most; default 3. -o: paint again what --judge does not take for done; default 1."
        ),
    ] = None,
    stage: Annotated[Stage | None, typer.Option(help="Only this one. Default: all; with --shard only generate.")] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Paint the I-th of N parts, from 1; several machines may share OUT.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many cases, spread evenly over categories.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures painted at once.")] = 16,
    official: Annotated[bool, typer.Option("--official", help="Also lay the pictures out as the makers' scorer expects them.")] = False,
    official_scorer: Annotated[
        str | None, typer.Option(metavar="COMMAND", help="Run the makers' scorer: a command with {pictures} and {results} in it.")
    ] = None,
    clip: Annotated[Path | None, typer.Option(help="Folder of transformers with a CLIP, for clip_i and clip_t.")] = None,
    dino: Annotated[Path | None, typer.Option(help="Folder of transformers with a DINO.")] = None,
    features: Annotated[Path | None, typer.Option(help="Network for the FID: TorchScript, or a folder of transformers.")] = None,
    lpips: Annotated[Path | None, typer.Option(help="AlexNet for LPIPS: torchvision's alexnet-owt-7be5be79.pth.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="emoji: measure by rule, into this JSON, instead of --out.")] = None,
    known_targets: Annotated[
        bool, typer.Option("--known-targets", help="-o: pairs of which only the source is held out, the target may have been trained on.")
    ] = False,
    pairs_per_rule: Annotated[int | None, typer.Option(min=1, help="-o: default 24, or as many more as 200 pairs in all need.")] = None,
    text: Annotated[
        Text | None, typer.Option(help="-o: the prompt of an edit. Default: instruction; with --designer local blueprint.")
    ] = None,
    holdout: Annotated[
        Holdout, typer.Option(help="-o: selection takes as many other pairs of each rule, to choose models by.")
    ] = Holdout.test,
    captions: Annotated[
        bool, typer.Option("--captions", help="-o: paint from captions, and find each result's picture among 100 of its set.")
    ] = False,
    *,
    sampling: SamplingOptions,
    judging: JudgeOptions,
    options: DesignerOptions,
) -> None:
    """Measure a painter on a benchmark: paint its cases, score them, compare tracks. Goes on where it was interrupted."""
    if (out is None) == (output is None) or (output is not None and name != "emoji"):
        raise typer.BadParameter("Give --out FOLDER; or, with emoji, -o REPORT.json.")
    check(sampling.seed >= 0, f"Seed {sampling.seed}: of an evaluation it must not be negative. Choose another one (--seed).")
    if output is not None:
        if sampling.changes([]).keys() - BY_RULE:
            named = "With -o only --steps, --solver, --guidance and --best-of may differ from the checkpoint's settings."
            raise typer.BadParameter(f"{named} Leave the others out, or give --out.")
        if designer not in ("none", "local"):
            raise typer.BadParameter("With -o only the checkpoint's own encoder writes blueprints. Give --designer local, or --out.")
        if designer == "local" and text is Text.instruction:
            raise typer.BadParameter("A designer writes blueprints. Leave --designer or --text instruction out.")
        if captions:
            of_edits = known_targets, pairs_per_rule, text, holdout is not Holdout.test, rounds, judging.judge
            if any(of_edits) or designer != "none":
                raise typer.BadParameter("--captions measures no edits: leave options of pairs, blueprints, rounds and judges out.")
            _by_caption(data, output, sampling, batch_size)
            return
        judge = _local_judge(judging.judge or [], rounds or 1)
        prompt = text or (Text.blueprint if designer == "local" else Text.instruction)
        _by_rule(
            data, output, known_targets, designer == "local", judge, sampling, batch_size=batch_size, pairs_per_rule=pairs_per_rule,
            selection=holdout is Holdout.selection, text=prompt.value, rounds=rounds or 1,
        )  # fmt: skip
        return
    assert out is not None
    from dim_jax.designer.choice import DesignerSpec
    from dim_jax.evals import run
    from dim_jax.evals.benchmark import benchmark as named
    from dim_jax.evals.measuring import Models
    from dim_jax.storage.paths import as_path

    benchmark, choice, changes = named(name), DesignerSpec.parse(designer), sampling.changes([])
    part = run.Shard.read(shard) if shard else run.Shard()
    folder, writes = as_path(data), choice.kind != "none"
    chosen = run.read_tracks(tracks or ("direct,designed" if writes else "direct"), benchmark, designed=writes)
    if not isinstance(folder, Path):
        raise InputError(f"{data}: a benchmark is read from this machine. Copy it here first.")
    cases, notes = benchmark.cases(folder, limit=limit, seed=sampling.seed)
    for note in notes:
        typer.echo(note, err=True)
    stages = [stage.value] if stage else ["report"] if judging.compare else ["generate"] if shard else list(run.STAGES)
    log = partial(typer.echo, err=True)
    rules, judges = judging.protocol(benchmark), judging.judges(options, sampling.checkpoint) if "judge" in stages else []
    if "generate" in stages:
        from dim_jax.sampling import Sampler

        painting = run.GenerateSetup(
            lambda: Sampler.from_pretrained(checkpoint_or_bundled(sampling.checkpoint), edits=benchmark.kind == "edit", **sampling.loading),
            lambda painter: sampling.settings(painter, changes, batch_size=batch_size),
            _designer_factory(choice, designer, options, sampling) if writes else None, designer, rounds or 3,
        )  # fmt: skip
        run.generate(
            benchmark, cases, out, painting, data=data, tracks=chosen, seed=sampling.seed, limit=limit, shard=part, official=official,
            progress=console.is_terminal, log=log,
        )  # fmt: skip
    if "judge" in stages:
        models = Models(clip, dino, features, lpips)
        scores = run.table(run.score(benchmark, cases, out, models, official=official, scorer=official_scorer, log=log))
        if scores is not None:
            open_console(stderr=False).print(scores)
        if judges:
            ask_judges(judges, rules, cases, out, options, log, console.is_terminal)
    if "report" in stages:
        write_report(benchmark, cases, out, judging, options, sampling.seed, log)


def _designer_factory(choice: Any, spec: str, options: DesignerOptions, sampling: SamplingOptions) -> Any:
    """What makes the designer of a painter and a shard; what can be refused is refused now."""
    from dim_jax.designer.stage_runner import DesignerFactory, StageRunner
    from dim_jax.evals.designs import EvalDesigner

    stages = StageRunner(options.limits(), options.retry_failed, console.is_terminal)
    from_file, price = choice.kind == "file", options.price(spec)
    opened = None if choice.kind == "local" else options.open(choice)

    @cache
    def local(painter: Any) -> Any:
        return local_designer(choice.name, painter, sampling.resolution or painter.settings.resolution, sampling.dtype)

    def make(painter: Any, tag: str) -> EvalDesigner:
        # A server's client belongs to one stage; blueprints of a file and a local model are read once.
        writer = opened if from_file else None
        factory = (lambda: local(painter)) if choice.kind == "local" else (lambda: writer or options.open(choice))
        return EvalDesigner((opened or local(painter)).name, DesignerFactory(factory, price), stages, from_file, tag)

    return make


def _local_judge(judges: list[str], rounds: int) -> str | None:
    """The checkpoint of the judge of -o; "": the painter's own encoder; None: there is no judge."""
    from dim_jax.designer.choice import DesignerSpec

    choices = [DesignerSpec.parse(judge) for judge in judges]
    if (rounds > 1) != (len(choices) == 1) or any(choice.kind != "local" for choice in choices):
        raise typer.BadParameter("With -o, --rounds N and one --judge local:FOLDER go together. Give both, or none.")
    return choices[0].name if choices else None


def _by_caption(data: str, output: Path, sampling: SamplingOptions, batch_size: int) -> None:
    from dim_jax.datasets.layouts.pairs import Pairs
    from dim_jax.evals import emoji, retrieval
    from dim_jax.pipeline import EditPipeline
    from dim_jax.storage.locks import lock_output
    from dim_jax.storage.paths import as_path

    emoji.check_outputs(output, overwrite=sampling.overwrite)
    captions = Pairs(as_path(data), "test", "caption")
    with lock_output(output):
        pipeline = EditPipeline.from_pretrained(checkpoint_or_bundled(sampling.checkpoint), **sampling.loading)
        report = retrieval.evaluate(
            pipeline, captions, output, data=f"{data} (test)", settings=sampling.settings(pipeline.sampler, sampling.changes([])),
            seed=sampling.seed, batch_size=batch_size, overwrite=sampling.overwrite, progress=console.is_terminal,
        )  # fmt: skip
    open_console(stderr=False).print(retrieval.table(report), soft_wrap=False)
    typer.echo(f"wrote {output} and {output.with_suffix('.png')}", err=True)


def _by_rule(
    data: str, output: Path, known_targets: bool, by_designer: bool, judge: str | None, sampling: SamplingOptions, **options: Any
) -> None:
    from dim_jax.datasets.layouts.pairs import Pairs
    from dim_jax.evals import emoji
    from dim_jax.pipeline import EditPipeline
    from dim_jax.storage.locks import lock_output
    from dim_jax.storage.paths import as_path

    emoji.check_outputs(output, overwrite=sampling.overwrite)
    split, folder = "known" if known_targets else "test", as_path(data)
    edits, captions = Pairs(folder, split, "edit"), Pairs(folder, "test", "caption")
    with lock_output(output):
        pipeline = EditPipeline.from_pretrained(checkpoint_or_bundled(sampling.checkpoint), **sampling.loading)
        painter = pipeline.sampler
        report = emoji.evaluate(
            pipeline, edits, captions, output, data=f"{data} ({split}{', selection' if options['selection'] else ''})",
            designer=local_designer("", painter, painter.settings.resolution) if by_designer else None,
            judge=None if judge is None else local_judge(judge, painter), settings=sampling.settings(painter, sampling.changes([])),
            seed=sampling.seed, overwrite=sampling.overwrite, progress=console.is_terminal, **options,
        )  # fmt: skip
    for table in (emoji.table(report), *emoji.rounds_table(report)):
        open_console(stderr=False).print(table, soft_wrap=False)
    if failures := report["failures"]:
        reason = next(iter(failures.values()))
        typer.echo(f"{len(failures)} pairs without a blueprint were painted from their instruction, such as: {reason}", err=True)
    typer.echo(f"wrote {output} and {output.with_suffix('.png')}", err=True)
