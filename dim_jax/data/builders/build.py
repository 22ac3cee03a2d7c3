"""`dim build-data tfds`: the folders of one data set, for each kind of rows that its source has."""

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from rich.console import Console

from dim_jax.data.builders.sets import SETS
from dim_jax.data.sources import kinds_of
from dim_jax.data.sources.prepared import PREPARED, described
from dim_jax.errors import InputError, require
from dim_jax.folders import new_folder
from dim_jax.paths import AnyPath, resolved


def build(
    name: str,
    source: AnyPath,
    data_dir: AnyPath,
    *,
    index: str = "",
    workers: int = 0,
    shards: int | None = None,
    beam: Sequence[str] | None = None,
    console: Console | None = None,
) -> dict[str, int]:
    """Make DATA_DIR/NAME/KIND/VERSION of every kind of rows that a source has; a folder that is there already is left as it is.

    A call that was killed leaves a folder with `incomplete` in its name, and the next begins that kind anew. What goes to a bucket is put
    together in the temporary folder (TMPDIR), and uploaded.

    Args:
        name: of `SETS`.
        source: the folder of the data set as it was downloaded, or that `dim build-data emoji` made.
        data_dir: the folder of TFDS.
        index, workers, console: as of `sets.Builder`.
        shards: files of each split; default: as many as keep them below 1 GiB.
        beam: options of an Apache Beam pipeline that writes, such as ["--runner=DirectRunner"], instead of this process.

    Returns:
        The rows of each split, as "edit/train".

    Raises:
        InputError: there is no such data set, the source is none of it, or a row cannot be used (names its file and line); or workers of a
            pipeline are to write to a bucket, where ArrayRecord cannot.
    """
    if name not in SETS:
        raise InputError(f"{name}: no such data set. There are {', '.join(SETS)}.")
    if not source.is_dir():
        raise InputError(f"{source}: no such folder. Give the one that {name} was downloaded to.")
    options: dict[str, Any] = {"manual_dir": resolved(source), "num_shards": shards}
    if beam is not None:
        if not isinstance(data_dir, Path):
            raise InputError(f"{data_dir}: workers write to a folder that they share. Mount the bucket there (docs/tfds.md), and name it.")
        require("apache_beam", extra="beam", what="Writing on workers")
        from apache_beam.options.pipeline_options import PipelineOptions  # pyright: ignore[reportMissingImports]

        options["beam_options"] = PipelineOptions(list(beam))
    had, counts = kinds_of(str(source), index), dict[str, int]()
    kinds = [config.name for config in SETS[name].BUILDER_CONFIGS if config.name in had]
    if not kinds:
        raise InputError(f"{source}: has rows of the kind {', '.join(had) or 'none'}, but none that are of {name}.")
    for kind in kinds:
        builder = partial(SETS[name], config=kind, index=index, workers=workers, console=console)
        splits = _prepared(builder, data_dir, tfds.download.DownloadConfig(**options)).info.splits
        counts |= {f"{kind}/{split}": info.num_examples for split, info in splits.items()}
    return counts


def _prepared(builder: Callable[..., Any], data_dir: AnyPath, config: Any) -> Any:
    """The builder of a version in a folder or a bucket, which is written if it is not there."""
    if isinstance(data_dir, Path):
        here = builder(data_dir=data_dir.resolve())
        here.download_and_prepare(download_config=config)
        return here
    with tempfile.TemporaryDirectory(prefix="dim_jax-") as scratch:
        here = builder(data_dir=scratch)
        folder = data_dir / os.path.relpath(here.data_dir, scratch)
        if PREPARED.fits(folder):
            return tfds.builder_from_directory(described(folder))
        here.download_and_prepare(download_config=config)
        with new_folder(folder, kind=PREPARED) as target:
            for path in Path(here.data_dir).iterdir():
                shutil.move(path, target)
        return here
