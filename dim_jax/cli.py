"""The command `dim`: options in, one call of the library, one line out. No logic lives here."""

import os
import sys
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from dim_jax import __version__
from dim_jax.cli_build import build_edit, build_emoji, build_t2i, build_text, build_tfds, rewrite
from dim_jax.cli_design import design
from dim_jax.cli_train import compile_step, index, require_training, train
from dim_jax.errors import InputError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=(__doc__ or "").split("\n")[0])
evaluate = typer.Typer(no_args_is_help=True, help="Measure a painter on a benchmark.")
app.add_typer(evaluate, name="evaluate")
build_data = typer.Typer(no_args_is_help=True, help="Make a data set.")
app.add_typer(build_data, name="build-data")
build_data.command("dim-edit")(build_edit)
build_data.command("dim-t2i")(build_t2i)
build_data.command("rewrite")(rewrite)
build_data.command("emoji")(build_emoji)
build_data.command("text")(build_text)
build_data.command("tfds")(build_tfds)
app.command()(design)
app.command()(index)
app.command()(train)
app.command("compile")(compile_step)
console = Console(stderr=True)


AS_SAID = "Default: as the checkpoint says, else"


class Target(StrEnum):
    """What `dim convert` can write."""

    orbax = "orbax"
    dim = "dim"
    diffusers = "diffusers"
    qwen = "qwen"


class Solver(StrEnum):
    """How the flow is followed."""

    dpm = "dpm++2m"
    euler = "euler"


class Which(StrEnum):
    """The parameters of a training state."""

    ema = "ema"
    raw = "raw"


class Precision(StrEnum):
    """The dtype of parameters and computation."""

    float32 = "float32"
    bfloat16 = "bfloat16"


Checkpoint = Annotated[
    Path | None,
    typer.Option(help="Folder with a whole Draw-In-Mind: published files, or what `dim convert` made. Default: the bundled nano model."),
]
Prompt = Annotated[str, typer.Option(help="What to paint. For an edit: the instruction or a blueprint.")]
Output = Annotated[Path, typer.Option("-o", "--output", help="PNG to write; prompt, seed and settings go into its metadata.")]
Seed = Annotated[int, typer.Option(help="Of the noise. The same seed gives the same picture.")]
# None: as the checkpoint says.
Steps = Annotated[int | None, typer.Option(min=1, help=f"Steps of the sampler. {AS_SAID} 30.")]
Guidance = Annotated[
    float | None, typer.Option(min=0, help=f"How far to move from the unconditional picture; 1 turns guidance off. {AS_SAID} 7.5.")
]
Shift = Annotated[float | None, typer.Option(help=f"More than 1 spends more steps on high noise. {AS_SAID} 3.")]
Negative = Annotated[str | None, typer.Option(help="What to move away from, instead of the learned null condition.")]
Resolution = Annotated[int | None, typer.Option(min=1, help=f"The picture has about this x this pixels. {AS_SAID} 1024.")]
Size = Annotated[str | None, typer.Option(metavar="HEIGHTxWIDTH", help="Exact size, instead of one by resolution and aspect ratio.")]
How = Annotated[Solver | None, typer.Option(help=f"The sampler. {AS_SAID} dpm++2m.")]
KeepLast = Annotated[bool, typer.Option("--keep-last", help="Accept a prompt that is too long and lose its first tokens.")]
Dtype = Annotated[Precision | None, typer.Option(help="Default: bfloat16 on accelerators, float32 on the CPU.")]
Tokenizer = Annotated[str | None, typer.Option(help="Folder or hub id of a tokenizer, instead of the checkpoint's own.")]
Designer = Annotated[
    str,
    typer.Option(
        metavar="KIND:NAME",
        help="Who writes the blueprint: openai:gpt-4o (or azure, anthropic, google, openrouter, vllm, sglang, ollama), local, "
        "local:FOLDER, file:BLUEPRINTS.jsonl, none.",
    ),
]
BaseUrl = Annotated[
    str | None, typer.Option(help="Of the designer's server, such as http://localhost:8000/v1. Default: as its kind has it.")
]
RowId = Annotated[
    str | None, typer.Option("--id", help="Of the blueprint in a file: designer. Default: the picture's name without suffix.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]


@app.callback(invoke_without_command=True)
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"dim_jax {__version__}")
        raise typer.Exit


@app.command()
def edit(
    image: Annotated[Path, typer.Option(help="The picture to edit.")],
    output: Output,
    prompt: Annotated[str | None, typer.Option(help="The instruction; without a designer also a blueprint.")] = None,
    then: Annotated[
        list[str] | None, typer.Option(help="Another round: the instruction for the result so far. May be given many times.")
    ] = None,
    checkpoint: Checkpoint = None,
    designer: Designer = "none",
    blueprint: Annotated[
        Path | None, typer.Option(help="Text file with the blueprint, painted as it stands, instead of a designer.")
    ] = None,
    show_blueprint: Annotated[bool, typer.Option("--show-blueprint", help="Print the blueprint of each round.")] = False,
    base_url: BaseUrl = None,
    row_id: RowId = None,
    keep_unchanged: Annotated[
        bool, typer.Option("--keep-unchanged", help="Take what a round leaves alone from the picture before it, to the bit.")
    ] = False,
    rounds: Annotated[bool, typer.Option("--rounds", help="Also write the picture of each round, to OUTPUT with '.1.png' ...")] = False,
    sheet: Annotated[
        bool, typer.Option("--sheet", help="Also write source and result of each round side by side, to OUTPUT with '.sheet.png'.")
    ] = False,
    seed: Seed = 0,
    steps: Steps = None,
    guidance: Guidance = None,
    flow_shift: Shift = None,
    negative_prompt: Negative = None,
    resolution: Resolution = None,
    size: Size = None,
    solver: How = None,
    keep_last: KeepLast = False,
    dtype: Dtype = None,
    tokenizer: Tokenizer = None,
    overwrite: Overwrite = False,
) -> None:
    """Edit a picture as the prompt says, and the result as each --then says."""
    from dim_jax import painting
    from dim_jax.data.pictures import open_picture
    from dim_jax.designer.choice import Choice
    from dim_jax.designer.design import blueprint as written
    from dim_jax.designer.design import read_text

    choice = Choice.read(designer)
    if (prompt is None and not blueprint) or (blueprint and choice.kind != "none"):
        raise typer.BadParameter("Give --prompt, or --blueprint without a designer.")
    if blueprint and then:
        raise typer.BadParameter("A --blueprint is for one round. Leave out --then, or go on from the picture that you get.")
    if rounds and not then:
        raise typer.BadParameter("There is one round, and OUTPUT is its picture. Add --then, or leave it out.", param_hint="--rounds")
    if show_blueprint and not blueprint and choice.kind == "none":
        raise typer.BadParameter("Name who writes it (--designer), or give one (--blueprint).", param_hint="--show-blueprint")
    prompts = [prompt or "", *(then or [])]
    sheet_path, paths = output.with_suffix(".sheet.png"), [output.with_suffix(f".{n}.png") for n in range(1, len(prompts) + 1) if rounds]
    for path in [output, *([sheet_path] if sheet else []), *paths]:
        painting.check_output(path, overwrite=overwrite)
    picture = open_picture(image)
    text = read_text(blueprint) if blueprint else prompts[0]
    changes = _changes([text, *prompts[1:]], steps, guidance, flow_shift, negative_prompt, resolution, size, solver, keep_last)
    writer, given = None, text if blueprint else None
    if choice.kind not in ("none", "local"):  # before the painter is loaded, which takes longer
        writer = choice.open(base_url=base_url)
        given = written(image, text, writer, row_id=row_id, keep=choice.costs)
    from dim_jax.pipeline import EditPipeline  # imports JAX, which takes seconds
    from dim_jax.session import EditSession

    pipeline = EditPipeline.from_pretrained(_checkpoint(checkpoint), dtype=dtype, tokenizer=tokenizer)
    settings = replace(pipeline.painter.settings, **changes)
    if choice.kind == "local":
        from dim_jax.designer.local import LocalDesigner

        if choice.name:
            writer = LocalDesigner.from_pretrained(choice.name, dtype=dtype)
        else:
            writer = LocalDesigner.of(pipeline.painter, settings.resolution)
    session = EditSession(
        pipeline, picture, designer=writer, settings=settings, keep_unchanged=keep_unchanged, file=image, name=row_id
    )  # fmt: skip
    written_by = f"file:{blueprint}" if blueprint else designer
    for number, one in enumerate(prompts):
        ready = given if number == 0 else None
        painted = session.edit(one, blueprint=ready, written_by=written_by, seed=seed, progress=console.is_terminal)
        if show_blueprint:
            typer.echo(painted.prompt)
        if rounds:
            painted.save(paths[number], overwrite=overwrite)
    session.rounds[-1].save(output, overwrite=overwrite)
    if sheet:
        painting.save_sheet(session.rounds, sheet_path, overwrite=overwrite)
    typer.echo(f"wrote {output}" + (f" and {sheet_path}" if sheet else ""), err=True)


@app.command()
def generate(
    prompt: Prompt,
    output: Output,
    checkpoint: Checkpoint = None,
    seed: Seed = 0,
    steps: Steps = None,
    guidance: Guidance = None,
    flow_shift: Shift = None,
    negative_prompt: Negative = None,
    resolution: Resolution = None,
    size: Size = None,
    solver: How = None,
    keep_last: KeepLast = False,
    dtype: Dtype = None,
    tokenizer: Tokenizer = None,
    overwrite: Overwrite = False,
) -> None:
    """Paint a picture from a prompt alone."""
    from dim_jax import painting

    painting.check_output(output, overwrite=overwrite)
    changes = _changes([prompt], steps, guidance, flow_shift, negative_prompt, resolution, size, solver, keep_last)
    from dim_jax.pipeline import GeneratePipeline

    pipeline = GeneratePipeline.from_pretrained(_checkpoint(checkpoint), dtype=dtype, tokenizer=tokenizer)
    settings = replace(pipeline.painter.settings, **changes)
    paintings = pipeline([prompt], seeds=[seed], settings=settings, progress=console.is_terminal)
    paintings[0].save(output, overwrite=overwrite)
    typer.echo(f"wrote {output}", err=True)


@app.command()
def convert(
    paths: Annotated[list[Path], typer.Argument(metavar="[SRC] DST", help="What to read, and the folder to make.")],
    to: Annotated[
        Target, typer.Option(help="Format to write: ours (orbax), the published names (dim), diffusers, transformers (qwen).")
    ] = Target.orbax,
    encoder: Annotated[Path | None, typer.Option(help="Assemble: a Qwen2.5-VL folder.")] = None,
    sana: Annotated[Path | None, typer.Option(help="Assemble: a SANA (NVlabs .pth or a folder).")] = None,
    autoencoder: Annotated[Path | None, typer.Option(help="Assemble: a DC-AE folder.")] = None,
    condition_length: Annotated[int, typer.Option(min=1, help="Assemble: rows of the null table.")] = 8192,
    seed: Annotated[int, typer.Option(help="Assemble: of the fresh connector.")] = 0,
    weights: Annotated[
        Which | None,
        typer.Option(help="Of a state of a training run, RUN/checkpoints/STEP: its averages (default), or the step's own."),
    ] = None,
    dtype: Annotated[Precision | None, typer.Option(help="Cast every tensor. Default: as stored.")] = None,
    max_shard_size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Of a file of --to dim or qwen, such as 16MiB or 5GB. Default: as it was, or one file."),
    ] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Folder whose tokenizer files go with the weights.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Convert weights between formats: dim convert SRC DST --to FORMAT.

    With --encoder, --sana and --autoencoder: put three parents and a fresh connector together to DST, the start of training.
    """
    parents = (encoder, sana, autoencoder)
    if any(parents) and (None in parents or len(paths) != 1 or to is not Target.orbax or max_shard_size):
        raise typer.BadParameter(
            "Give --encoder, --sana and --autoencoder together, and only DST; the result is a checkpoint folder, without shards."
        )
    if not any(parents) and len(paths) != 2:
        raise typer.BadParameter(f"Give SRC and DST; these are {len(paths)} paths.")
    from dim_jax.resume import is_state
    from dim_jax.weights import convert
    from dim_jax.weights.shards import parse_size

    trained = is_state(paths[0])
    if weights is not None and not trained:
        raise typer.BadParameter("it goes with a state of a training run, RUN/checkpoints/STEP.", param_hint="--weights")
    options: dict[str, Any] = {"dtype": dtype and dtype.value, "tokenizer": tokenizer, "overwrite": overwrite}
    if encoder and sana and autoencoder:
        convert.assemble(encoder, sana, autoencoder, paths[0], condition_length=condition_length, seed=seed, **options)
    else:
        options["max_shard_size"] = None if max_shard_size is None else parse_size(max_shard_size)
        if trained:
            require_training("A state of a training run")
            from dim_jax.exporting import convert_state

            convert_state(paths[0], paths[1], to.value, (weights or Which.ema).value, **options)
        else:
            convert.convert(paths[0], paths[1], to.value, **options)


@evaluate.command()
def emoji(
    data: Annotated[Path, typer.Option(help="Folder of edit pairs; those of the test are painted.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="JSON to write; a contact sheet and the pictures lie beside it.")],
    checkpoint: Checkpoint = None,
    known_targets: Annotated[
        bool, typer.Option("--known-targets", help="Pairs of which only the source is held out, the target may have been trained on.")
    ] = False,
    pairs_per_rule: Annotated[int | None, typer.Option(min=1, help="Default: 24, or as many more as 200 pairs in all need.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the sample and of the noise.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures painted at once.")] = 16,
    dtype: Dtype = None,
    overwrite: Overwrite = False,
) -> None:
    """Edit held-out emoji pairs and measure how near the results come to the targets. Goes on where it was interrupted."""
    from dim_jax.data.pairs import Pairs
    from dim_jax.evals import emoji
    from dim_jax.pipeline import EditPipeline

    emoji.check_outputs(output, overwrite=overwrite)
    split = "known" if known_targets else "test"
    edits, captions = Pairs(data, split, "edit"), Pairs(data, "test", "caption")
    pipeline = EditPipeline.from_pretrained(_checkpoint(checkpoint), dtype=dtype)
    report = emoji.evaluate(
        pipeline, edits, captions, output, data=f"{data} ({split})", pairs_per_rule=pairs_per_rule, seed=seed, batch_size=batch_size,
        overwrite=overwrite, progress=console.is_terminal,
    )  # fmt: skip
    Console().print(emoji.table(report))
    typer.echo(f"wrote {output} and {output.with_suffix('.png')}", err=True)


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(metavar="OUT_FOLDER", help="Where the paintings and a sheet of them go.")],
    overwrite: Overwrite = False,
) -> None:
    """Edit the sample pictures that come with the bundled model, and paint from text."""
    from dim_jax import demo

    sheet = demo.run(_checkpoint(None), folder, overwrite=overwrite, progress=console.is_terminal)
    typer.echo(f"wrote {sheet} and the paintings on it", err=True)


def _checkpoint(chosen: Path | None) -> Path:
    """The folder that was named, else the bundled one."""
    if chosen is not None:
        return chosen
    from dim_jax.bundled import bundled_checkpoint

    folder = bundled_checkpoint()
    typer.echo("using the bundled nano model, 64 px emoji; --checkpoint takes another", err=True)
    return folder


def _changes(prompts, steps, guidance, flow_shift, negative_prompt, resolution, size, solver, keep_last) -> dict[str, Any]:
    """The settings that were named; refuses all that can be refused before a checkpoint is read."""
    exact = _size(size)
    from dim_jax.settings import Settings, check_prompt

    for number, prompt in enumerate(prompts, 1):
        check_prompt(prompt, "The prompt" if len(prompts) == 1 else f"The prompt of round {number}")
    options = {
        "num_steps": steps, "guidance_scale": guidance, "flow_shift": flow_shift, "solver": solver and solver.value,
        "resolution": resolution, "size": exact, "negative_prompt": negative_prompt, "overflow": "keep_last" if keep_last else None,
    }  # fmt: skip
    changes = {name: value for name, value in options.items() if value is not None}
    Settings(**changes)
    return changes


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise typer.BadParameter(f"{text}: write HEIGHTxWIDTH in pixels, such as 768x1280.", param_hint="--size")
    return int(height), int(width)


def main() -> None:
    """Run the command; what the user can mend becomes one line and exit code 1, wrong usage exits with 2."""
    # Compiled programs are kept, so that only the first picture of a size waits for the compiler. JAX reads this when it is imported.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.expanduser("~/.cache/dim_jax"))
    # Accepted anywhere on the line, declared once: the root command reads it first.
    arguments = sorted(sys.argv[1:], key=lambda argument: argument != "--debug")
    try:
        app(args=arguments, prog_name="dim")
    except (InputError, OSError) as error:
        if "--debug" in arguments:
            raise
        message = " ".join(f"error: {error}".splitlines())
        console.print(message, style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
