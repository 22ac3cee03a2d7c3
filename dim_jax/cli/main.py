"""The command `dim`: options in, one call of the library, one line out. No logic lives here."""

import os
import signal
import sys
from enum import StrEnum
from pathlib import Path
from traceback import walk_stack
from typing import Annotated, Any

import typer

from dim_jax import __version__
from dim_jax.cli.build import build_edit, build_emoji, build_icons, build_judgements, build_t2i, build_text, build_tints, prepare, rewrite
from dim_jax.cli.design import design
from dim_jax.cli.doctor import doctor
from dim_jax.cli.evaluate import evaluate
from dim_jax.cli.options import Commands
from dim_jax.cli.paint import Overwrite, Precision, edit, generate
from dim_jax.cli.push import push
from dim_jax.cli.serve import serve
from dim_jax.cli.train import cache, compile_step, require_training, train
from dim_jax.cli.verify import verify
from dim_jax.cli.web import web
from dim_jax.console import open_console
from dim_jax.errors import InputError
from dim_jax.storage.disk import is_creatable
from dim_jax.storage.environment import check_environment

app = Commands(no_args_is_help=True, pretty_exceptions_enable=False)
build_data = Commands(no_args_is_help=True, help="Make a data set.")
app.add_typer(build_data, name="build-data")
build_data.command("dim-edit")(build_edit)
build_data.command("dim-t2i")(build_t2i)
build_data.command("rewrite")(rewrite)
build_data.command("emoji")(build_emoji)
build_data.command("tints")(build_tints)
build_data.command("icons")(build_icons)
build_data.command("text")(build_text)
build_data.command("judgements")(build_judgements)
app.command()(edit)
app.command()(generate)
app.command()(serve)
app.command()(web)
app.command()(design)
app.command()(prepare)
app.command()(cache)
app.command()(train)
app.command("compile")(compile_step)
app.command()(verify)
app.command()(evaluate)
app.command()(doctor)
app.command()(push)
console = open_console()


class Target(StrEnum):
    """What `dim convert` can write."""

    orbax = "orbax"
    dim = "dim"
    diffusers = "diffusers"
    qwen = "qwen"
    peft = "peft"


class StateWeights(StrEnum):
    """The parameters of a training state."""

    ema = "ema"
    raw = "raw"


@app.callback(invoke_without_command=True)
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Draw-In-Mind: edit and paint pictures; train, convert, serve and measure the model."""
    if version:
        typer.echo(f"dim_jax {__version__}")
        raise typer.Exit
    check_environment()


@app.command()
def convert(
    paths: Annotated[list[str], typer.Argument(metavar="[SRC] DST", help="What to read, also ORG/NAME of the hub; the folder to make.")],
    to: Annotated[
        Target,
        typer.Option(
            help="Format to write: ours (orbax), the published names (dim), diffusers, transformers (qwen); of a LoRA dim, peft, diffusers."
        ),
    ] = Target.orbax,
    encoder: Annotated[str | None, typer.Option(help="Assemble: a Qwen2.5-VL folder.")] = None,
    sana: Annotated[str | None, typer.Option(help="Assemble: a SANA (NVlabs .pth or a folder).")] = None,
    autoencoder: Annotated[str | None, typer.Option(help="Assemble: a DC-AE folder.")] = None,
    condition_length: Annotated[int, typer.Option(min=1, help="Assemble: rows of the null table.")] = 8192,
    seed: Annotated[int, typer.Option(help="Assemble: of the fresh connector.")] = 0,
    weights: Annotated[
        StateWeights | None,
        typer.Option(help="Of a state of a training run, RUN/checkpoints/STEP: its averages (default), or the step's own."),
    ] = None,
    dtype: Annotated[Precision | None, typer.Option(help="Cast every tensor. Default: as stored.")] = None,
    max_shard_size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Of a file of --to dim or qwen, such as 16MiB or 5GB. Default: as it was, or one file."),
    ] = None,
    mean_with: Annotated[
        str | None, typer.Option(metavar="SRC", help="Write the mean of two models: another one in the same format, such as from before.")
    ] = None,
    lora: Annotated[
        list[str] | None, typer.Option(metavar="PATH[:WEIGHT]", help="A LoRA to merge into SRC. May be given several times.")
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Folder whose tokenizer files go with the weights.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Convert weights between formats: dim convert SRC DST --to FORMAT. SRC may be a LoRA.

    With --encoder, --sana and --autoencoder: put three parents and a fresh connector together to DST, the start of training.
    """
    parents = (encoder, sana, autoencoder)
    if any(parents) and (None in parents or len(paths) != 1 or to is not Target.orbax or max_shard_size):
        raise typer.BadParameter(
            "Give --encoder, --sana and --autoencoder together, and only DST; the result is a checkpoint folder, without shards."
        )
    if not any(parents) and len(paths) != 2:
        raise typer.BadParameter(f"Give SRC and DST; these are {len(paths)} paths.")
    from dim_jax.storage.disk import parse_size
    from dim_jax.storage.paths import as_path
    from dim_jax.training.resume import is_state
    from dim_jax.weights import convert

    source = as_path(paths[0])
    trained = is_state(source)
    if weights is not None and not trained:
        raise typer.BadParameter("it goes with a state of a training run, RUN/checkpoints/STEP.", param_hint="--weights")
    for option, value in (("--mean-with", mean_with), ("--lora", lora)):
        if value and (any(parents) or trained):
            raise typer.BadParameter("it goes with one SRC; convert the state of a training run first.", param_hint=option)
    options: dict[str, Any] = {"dtype": dtype and dtype.value, "tokenizer": tokenizer, "overwrite": overwrite}
    if encoder and sana and autoencoder:
        convert.assemble(encoder, sana, autoencoder, paths[0], condition_length=condition_length, seed=seed, **options)
    else:
        options["max_shard_size"] = None if max_shard_size is None else parse_size(max_shard_size, "--max-shard-size")
        if trained:
            require_training("A state of a training run")
            from dim_jax.training.exporting import convert_state

            convert_state(source, as_path(paths[1]), to.value, (weights or StateWeights.ema).value, **options)
        else:
            convert.convert(source, paths[1], to.value, mean_with=mean_with, loras=lora or (), **options)


@app.command()
def demo(
    folder: Annotated[str, typer.Argument(metavar="OUT_FOLDER", help="Where the paintings and a sheet of them go, also gs://BUCKET/...")],
    overwrite: Overwrite = False,
) -> None:
    """Edit the sample pictures that come with the bundled model, and paint from text."""
    from dim_jax import demo
    from dim_jax.storage.paths import as_path
    from dim_jax.weights.bundled import bundled_checkpoint

    sheet = demo.run(bundled_checkpoint(), as_path(folder), overwrite=overwrite, progress=console.is_terminal)
    typer.echo(f"wrote {sheet} and the paintings on it", err=True)


def main() -> None:
    """Run the command; what the user can mend becomes one line and exit code 1, wrong usage exits with 2.

    Ctrl-C (exit code 130) and SIGTERM (143) raise KeyboardInterrupt, so that whatever is half-written is removed. Where a command has an
    answer of its own to them (`training.supervision`, `designer.runner`), that one counts.
    """
    # Compiled programs are kept, so that only the first picture of a size waits for the compiler. JAX reads this when it is imported.
    if (cache := Path(os.path.expanduser("~/.cache/dim_jax"))).is_absolute() and is_creatable(cache):
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    # Accepted anywhere on the line, declared once: the root command reads it first.
    arguments = sorted(sys.argv[1:], key=lambda argument: argument != "--debug")
    signals = list[int]()

    def stop(number: int, frame: Any) -> None:
        if number != signal.SIGALRM:
            signals.append(number)
        codes = [called.f_code for called, _ in walk_stack(frame)]
        # Some libraries crash where they are interrupted while they are imported; errors in these functions are dropped.
        if any("importlib" in code.co_filename or code.co_name in ("_xla_gc_callback", "__del__") for code in codes):
            signal.setitimer(signal.ITIMER_REAL, 0.1)  # again
        else:
            raise KeyboardInterrupt

    handlers = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
    try:
        _check_working_folder()
        app(args=arguments, prog_name="dim")
    except (InputError, OSError) as error:
        if "--debug" in arguments:
            raise
        message = str(error)
        if isinstance(error, OSError) and error.filename and error.strerror:
            message = f"{error.filename}: {error.strerror}. Check the path and its permissions."
        _print_line(f"error: {message}")
        sys.exit(error.exit_code if isinstance(error, InputError) else 1)
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, SystemExit) and end.code != 130:  # as typer ends on KeyboardInterrupt
            raise
        exec("")  # makes Python forget that code in a text was interrupted: else it would end itself by the signal
        terminated = signals[:1] == [signal.SIGTERM]
        _print_line(f"stopped by {'SIGTERM' if terminated else 'Ctrl-C'}")
        sys.exit(143 if terminated else 130)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _check_working_folder() -> None:
    try:
        os.getcwd()
    except FileNotFoundError as error:  # it names no file, wherever it is raised later
        raise InputError("The folder that this command was started in is gone. Change to another one (cd).") from error


def _print_line(message: str) -> None:
    line = " ".join(message.splitlines())
    typer.echo(typer.style(line, fg="red") if console.is_terminal and not console.no_color else line, err=True, color=True)
