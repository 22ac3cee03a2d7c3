"""The commands `dim cache`, `dim train` and `dim compile`: options in, one call of the library."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from dim_jax.console import open_console
from dim_jax.errors import require_packages

CONFIG_HELP = "A file such as configs/nano_edit.py, or the name of one that comes with the package: nano_edit."
Change = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the config, such as data.source=synthetic.")
]


class Storage(StrEnum):
    """How hidden states are stored in a cache."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    int8 = "int8"


def train(
    config: Annotated[Path, typer.Option(help=CONFIG_HELP)],
    workdir: Annotated[str, typer.Option(help="Where the run lives, a folder or gs://BUCKET/...; one that was stopped goes on there.")],
    steps: Annotated[int | None, typer.Option(min=1, help="Train this many steps instead of the config's number.")] = None,
    change: Change = None,
    allow_changes: Annotated[
        bool, typer.Option("--allow-changes", help="Go on with another config than the run began with; changes.jsonl says what differs.")
    ] = False,
    profile: Annotated[str | None, typer.Option(metavar="START:STOP", help="Trace these steps for a profiler, to WORKDIR/profile.")] = None,
) -> None:
    """Train the painter, the encoder or the autoencoder as a config says.

    Exit codes: 0 done; 75 stopped by SIGTERM, with a checkpoint; 70 no step within train.watchdog_minutes; 1 it cannot go on.
    After 75, 70 or a kill the same command goes on.
    """
    first, colon, last = (profile or "").partition(":")
    if profile is not None and not (colon and first.isdecimal() and last.isdecimal()):
        raise typer.BadParameter(f"{profile}: write START:STOP, such as 100:110.", param_hint="--profile")
    settings = _config(config, [*(change or []), *([] if steps is None else [f"train.steps={steps}"])], feature="Training")
    from dim_jax import processes, train
    from dim_jax.storage.paths import as_path

    folder = as_path(workdir)
    with processes.distributed(), processes.lock_run_folder(folder):
        train.main(settings, folder, allow_changes=allow_changes, profile=(int(first), int(last)) if profile else None)


def cache(
    config: Annotated[Path, typer.Option(help=CONFIG_HELP)],
    into: Annotated[
        str,
        typer.Option(help="Where the cache lives, a folder or gs://BUCKET/..., as in data.cache; one that is not finished is continued."),
    ],
    dtype: Annotated[Storage | None, typer.Option(help="Of the stored hidden states. Default: model.dtype, which loses nothing.")] = None,
    shard_size: Annotated[str, typer.Option(metavar="SIZE", help="About the size of a file, such as 4GiB.")] = "4GiB",
    change: Change = None,
) -> None:
    """Store what the frozen parts of a painter make of every row, for training without them. Goes on where it was interrupted."""
    settings = _config(config, change or [], feature="Caching")
    from dim_jax import caching, processes
    from dim_jax.storage.disk import parse_size
    from dim_jax.storage.paths import as_path

    size, folder = parse_size(shard_size, "--shard-size"), as_path(into)
    with processes.distributed(), processes.lock_run_folder(folder):
        caching.main(settings, folder, hidden_dtype=None if dtype is None else dtype.value, shard_bytes=size)


def compile_step(
    config: Annotated[Path, typer.Argument(help=CONFIG_HELP)],
    topology: Annotated[str, typer.Option(metavar="KIND:AxB", help="The slice, such as v5e:4x4; also v4, v5p, v6e, tpu7x.")],
    change: Change = None,
    hlo: Annotated[Path | None, typer.Option(metavar="FILE", help="Keep the compiled program's text (HLO).")] = None,
    inference: Annotated[bool, typer.Option("--inference", help="Compile what painting a batch runs instead.")] = False,
) -> None:
    """Compile a training step for a TPU slice on any machine, and say whether it fits (exit code 1: it does not) and how long it takes."""
    from dim_jax.aot.topology import Topology

    target = Topology.parse(topology)
    target.set_environment()  # before anything imports JAX
    require_packages("libtpu", extra="tpu", feature="Compiling for TPUs")
    settings = _config(config, change or [], feature="Compiling a training step")
    from dim_jax.aot import compiling

    compiling.main(settings, target, open_console(stderr=False), hlo_file=hlo, inference=inference)


def require_training(feature: str) -> None:
    """Refuse where the packages of the extra `train` are missing."""
    require_packages("absl", "grain", "ml_collections", "tensorboard", extra="train", feature=feature)


def _config(path: Path, changes: list[str], *, feature: str) -> Any:
    pairs = [text.partition("=") for text in changes]
    if invalid := [key for key, equals, _ in pairs if not equals]:
        raise typer.BadParameter(f"{invalid[0]}: write KEY=VALUE.", param_hint="--set")
    require_training(feature)
    from dim_jax.config import read_config

    return read_config(path, {key: value for key, _, value in pairs})
