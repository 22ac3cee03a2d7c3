"""The commands of `dim build-data`: options in, one call of the library, one line out."""

import shlex
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from dim_jax.cli.designer_options import DesignerOptions, with_designer_options
from dim_jax.cli.options import with_options
from dim_jax.cli.paint import Checkpoint, LoadingOptions, checkpoint_or_bundled
from dim_jax.console import open_console
from dim_jax.errors import require_packages

console = open_console()
Folder = Annotated[str, typer.Argument(metavar="OUT", help="The folder to make, also gs://BUCKET/...")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing data set.")]
Packages = Annotated[Path | None, typer.Option(help="Folder with the archives (.tgz); by default npm fetches them.")]
Side = Annotated[int, typer.Option(min=16, help="Of the pictures, in pixels.")]
Config = Annotated[Path | None, typer.Option(help="TOML with what differs from the defaults.")]
Designer = Annotated[str | None, typer.Option(metavar="KIND:NAME", help="Who writes: openai:gpt-4o, vllm:MODEL ..., as for `dim design`.")]


@with_designer_options
def build_edit(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make, or to go on with.")],
    source: Annotated[
        list[str],
        typer.Option(
            metavar="KIND:PATH",
            help="Pairs to build from: ultraedit:FOLDER, sharegpt4o:FOLDER, pairs:FILE.jsonl. May be given several times.",
        ),
    ],
    options: DesignerOptions,
    designer: Designer = None,
    assessor: Annotated[str | None, typer.Option(metavar="KIND:NAME", help="Who judges the instructions. Default: the designer.")] = None,
    config: Config = None,
    until: Annotated[str, typer.Option(metavar="STAGE", help="The last stage to run: score, keep, assess, design or write.")] = "write",
    beam: Annotated[
        str | None, typer.Option(metavar="OPTIONS", help='Score on workers of Apache Beam, such as "--runner=DirectRunner".')
    ] = None,
) -> None:
    """Rebuild DIM-Edit: filter edit pairs, judge and mend their instructions, write blueprints. Goes on where it was stopped."""
    from dim_jax.datasets.construction.config import read_config
    from dim_jax.datasets.construction.edit import STAGES, build
    from dim_jax.datasets.construction.sources import open_source
    from dim_jax.storage.locks import lock_output

    _check_stage(until, STAGES)
    settings = read_config("dim_edit.toml", config)
    runner = _stage_runner(options)
    writer = _writer(designer, options)
    with lock_output(folder):
        counts = build(
            folder, [open_source(spec) for spec in source], settings, _writer(assessor, options) or writer, writer, runner,
            until=until, beam=None if beam is None else shlex.split(beam), console=console,
        )  # fmt: skip
    parts = {"keep": ("filter", "kept"), "assess": ("assess", "answered"), "design": ("design", "answered")}
    summary = [f"{stage} {counts[part][name]}" for stage, (part, name) in parts.items() if part in counts]
    typer.echo(f"{folder}: {counts['filter']['pairs']} pairs; {', '.join(summary)}", err=True)


@with_designer_options
def build_t2i(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make, or to go on with.")],
    metadata: Annotated[Path, typer.Option(help="Folder with the jsonl files of DIM-T2I, or your own.")],
    upstream: Annotated[Path, typer.Option(help="Folder with what lies upstream, under the name of each sub-source.")],
    options: DesignerOptions,
    source: Annotated[list[str] | None, typer.Option(metavar="NAME", help="A sub-source of the config. Default: all.")] = None,
    designer: Annotated[
        str | None, typer.Option(metavar="KIND:NAME", help="Who writes captions along the dimensions. Default: the published ones.")
    ] = None,
    fetch: Annotated[bool, typer.Option("--fetch", help="First download what lies upstream, as far as it is not there.")] = False,
    config: Config = None,
    until: Annotated[str, typer.Option(metavar="STAGE", help="The last stage to run: fetch, pictures, caption or write.")] = "write",
) -> None:
    """Rebuild DIM-T2I: find or download pictures by rule, check their size, caption them. Goes on where it was stopped."""
    from dim_jax.datasets.construction.config import read_config
    from dim_jax.datasets.construction.t2i import STAGES, build
    from dim_jax.storage.locks import lock_output

    _check_stage(until, STAGES)
    settings = read_config("dim_t2i.toml", config)
    runner = _stage_runner(options)
    writer = _writer(designer, options)
    with lock_output(folder), lock_output(upstream) if fetch else nullcontext():
        counts = build(folder, metadata, upstream, source or list(settings["sources"]), settings, writer, runner, fetch=fetch, until=until)
    stored, rejected = (sum(row[name] for row in counts.get("pictures", {}).values()) for name in ("taken", "rejected"))
    typer.echo(f"{folder}: {stored} pictures, {rejected} rejected", err=True)


@with_designer_options
def rewrite(
    table: Annotated[Path, typer.Argument(metavar="PROMPTS.jsonl", help="Objects with id and, as prompt, a short prompt.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="A jsonl, which is continued if it is there.")],
    designer: Annotated[str, typer.Option(metavar="KIND:NAME", help="Who writes: as for `dim design`.")],
    options: DesignerOptions,
    config: Config = None,
) -> None:
    """Write short prompts out into long ones, as the painter was trained on."""
    from dim_jax.datasets.construction.captions import rewriting_task
    from dim_jax.datasets.construction.config import read_config
    from dim_jax.designer.choice import read_rows
    from dim_jax.designer.design import check_output
    from dim_jax.designer.runner import Job

    check_output(output, table)
    settings = read_config("dim_t2i.toml", config)["captions"]
    runner = _stage_runner(options)
    writer = _writer(designer, options)
    assert writer is not None
    jobs = [Job((), row["prompt"], row) for _, row in read_rows(table)]
    runner.stage(output, jobs, rewriting_task(settings["words"], settings["min_words"]), writer)


def _check_stage(until: str, stages: Sequence[str]) -> None:
    if until not in stages:
        raise typer.BadParameter(f"Stages are {', '.join(stages)}.", param_hint="--until")


def _stage_runner(options: DesignerOptions):
    from dim_jax.designer.stage_runner import StageRunner

    return StageRunner(options.limits(), options.retry_failed, console.is_terminal, lambda line: typer.echo(line, err=True))


def _writer(spec: str | None, options: DesignerOptions):
    from dim_jax.designer.choice import DesignerSpec
    from dim_jax.designer.stage_runner import DesignerFactory

    if spec is None:
        return None
    choice = DesignerSpec.parse(spec)
    if not choice.online:
        raise typer.BadParameter(f'"{spec}": name a model behind a server.', param_hint="--designer")
    options.open(choice)  # a key that is missing ends it before long work
    return DesignerFactory(lambda: options.open(choice), options.price(spec))


def build_emoji(
    folder: Folder,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME",
            help="Who drew them: noto, twemoji, fluent_flat, fluent_3d (the default: these four), noto_v1, emojione.",
        ),
    ] = None,
    side: Side = 64,
    packages: Packages = None,
    overwrite: Overwrite = False,
) -> None:
    """Make edit pairs, captions and blueprints of the emoji of npm packages."""
    from dim_jax.datasets.emoji.build import build
    from dim_jax.datasets.emoji.packages import OLDER_SETS, SETS
    from dim_jax.storage.paths import as_path

    sets = list(dict.fromkeys(sets or SETS))
    if unknown := [name for name in sets if name not in SETS | OLDER_SETS]:
        raise typer.BadParameter(f"{', '.join(unknown)}: sets are {', '.join(SETS | OLDER_SETS)}.", param_hint="--set")
    _pairs(folder, build(as_path(folder), sets=sets, side=side, archives=packages, overwrite=overwrite, console=console))


def build_tints(
    folder: Folder,
    source: Annotated[str, typer.Option("--from", help="Folder that `dim build-data emoji` made, also gs://BUCKET/...")],
    overwrite: Overwrite = False,
) -> None:
    """Make edit pairs of emoji in other colours: by a colour's name, and such that keep a colour."""
    from dim_jax.datasets.emoji.tints import build
    from dim_jax.storage.paths import as_path

    _pairs(folder, build(as_path(source), as_path(folder), overwrite=overwrite))


def build_icons(
    folder: Folder,
    side: Side = 64,
    packages: Packages = None,
    overwrite: Overwrite = False,
) -> None:
    """Make icons that show what emoji show: edit pairs of flags, keys, signs, clocks and the like, captions also of hands and things."""
    from dim_jax.datasets.emoji.icons import build
    from dim_jax.storage.paths import as_path

    _pairs(folder, build(as_path(folder), side=side, archives=packages, overwrite=overwrite))


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
    from dim_jax.datasets.text.build import build
    from dim_jax.storage.paths import as_path

    options = {"scenes": scenes, "side": side, "pictures": pictures, "font_folder": fonts, "seed": seed}
    _pairs(folder, build(as_path(folder), **options, overwrite=overwrite, console=console))


@with_options(options=LoadingOptions)
def build_judgements(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make, or to go on with.")],
    source: Annotated[str, typer.Option("--from", help="Folder of pairs that `dim build-data` made, also gs://BUCKET/...")],
    options: LoadingOptions,
    checkpoint: Checkpoint = None,
    pairs_per_rule: Annotated[int, typer.Option(min=1, help="Pairs to train on of each rule, or all of one that has fewer.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Of the sample of pairs and of the noise.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the sampler. Default: as the checkpoint says.")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="Guidance scale. Default: as the checkpoint says.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures painted at once.")] = 16,
) -> None:
    """Paint training pairs, and say of each result by its target whether it is what was asked for: what an encoder learns to judge from."""
    from dim_jax.evals.judgements import build
    from dim_jax.pipeline import EditPipeline
    from dim_jax.storage.locks import lock_folder
    from dim_jax.storage.paths import as_path

    with lock_folder(folder):
        pipeline = EditPipeline.from_pretrained(checkpoint_or_bundled(checkpoint), **options.loading)
        changes = {"num_steps": steps, "guidance_scale": guidance, "batch_size": batch_size}
        settings = replace(pipeline.sampler.settings, **{name: value for name, value in changes.items() if value is not None})
        counts = build(
            pipeline, as_path(source), folder, pairs_per_rule=pairs_per_rule, seed=seed, settings=settings, progress=console.is_terminal
        )
    typer.echo(f"wrote {folder}: {', '.join(f'{count} results {answer}' for answer, count in counts.items())}", err=True)


def prepare(
    source: Annotated[str, typer.Argument(help="A data set as it was downloaded or built: a folder or a jsonl file, also gs://BUCKET/...")],
    out: Annotated[str, typer.Argument(help="The folder to make, also gs://BUCKET/...; one that was begun is finished.")],
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or hub id of the encoder's, to count the tokens of texts. Default: each run counts anew.")
    ] = None,
    layout: Annotated[str, typer.Option(help="Of the source, where several would fit: dim, pairs, sharegpt4o, ultra_edit.")] = "",
    bad_samples: Annotated[int, typer.Option(min=0, help="Rows that may be unusable; they are listed in OUT/bad_rows.jsonl.")] = 0,
    workers: Annotated[int, typer.Option(min=0, help="Processes that write; 0: this one alone.")] = 0,
    shards: Annotated[int | None, typer.Option(min=1, help="Files of each split. Default: as many as keep each below 1 GiB.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a data set in the format that training reads. Every picture is checked; an interrupted call goes on."""
    require_packages("tensorflow_datasets", "importlib_resources", "array_record", extra="data", feature="A data set")
    from dim_jax.datasets.prepare import prepare
    from dim_jax.storage.paths import as_path

    options = {"tokenizer": tokenizer, "layout": layout, "bad_samples": bad_samples, "workers": workers, "shards": shards}
    rows = prepare(as_path(source), as_path(out), **options, overwrite=overwrite, console=console)
    typer.echo(f"{out}: {', '.join(f'{count:,} rows of {split}' for split, count in rows.items())}", err=True)


def _pairs(folder: str, statistics: dict[str, Any]) -> None:
    total = statistics["total"]
    typer.echo(f"wrote {folder}: {total['train']} pairs to train on, {total['test']} to test", err=True)
