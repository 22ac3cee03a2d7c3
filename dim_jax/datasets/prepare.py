"""`dim prepare`: converts any downloaded data set to the format that training reads (`data/dataset.py`).

    dim prepare data/DIM-Edit data/prepared/DIM-Edit --tokenizer models/Qwen2.5-VL-3B-Instruct --workers 16

Shards are written one by one; after an interruption the same call writes the missing ones. Their state is in OUT/.prepare.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from rich.console import Console
from rich.progress import track

from dim_jax.data.dataset import INFO, SplitStats, stats_path, write_stats
from dim_jax.data.example import KINDS, Kind
from dim_jax.data.row_stats import COLUMNS, RowStats
from dim_jax.data.workers import process_pool
from dim_jax.datasets.layouts import archives, layout_of, layouts
from dim_jax.datasets.shards import (
    Shard,
    ShardInfo,
    SplitSource,
    estimate_bytes,
    open_rows,
    plan_shards,
    read_shard_info,
    tfds_features,
    write_shard,
)
from dim_jax.datasets.statistics import DatasetStatistics
from dim_jax.errors import InputError, require_packages
from dim_jax.plugins import plugin
from dim_jax.processing.chat import ChatTokenizer
from dim_jax.storage.disk import check_space
from dim_jax.storage.folders import new_file, write_errors, write_json, write_text
from dim_jax.storage.jsonl import json_loads
from dim_jax.storage.locks import lock_folder
from dim_jax.storage.paths import AnyPath, absolute, entries

SHARD_BYTES = 2**30
WORK_FOLDER, PLAN, BAD, SUMS = ".prepare", "plan.json", "bad_rows.jsonl", "SHA256SUMS"
CARD = "README.md"  # of the source, which goes along: its licences hold for what is trained on it
DESCRIPTIONS = {
    "edit": "Edits: a source, an instruction, a target.", "caption": "Pictures and their captions.",
    "judgement": "Judgements: a source, an instruction, a result, whether that is what was asked for.",
}  # fmt: skip


def prepare(
    source: AnyPath,
    out: AnyPath,
    *,
    layout: str = "",
    tokenizer: str | None = None,
    bad_samples: int = 0,
    workers: int = 0,
    shards: int | None = None,
    overwrite: bool = False,
    console: Console | None = None,
) -> dict[str, int]:
    """Write a prepared data set, or its missing shards.

    Args:
        source: the folder of a downloaded or built data set, or one jsonl file; also in a bucket.
        out: the folder to make, also in a bucket. A finished one is left unchanged.
        layout: the name of the source's layout, if several match.
        tokenizer: folder or hub id of the encoder's, which counts the tokens of every text. Without one, each training run counts them.
        bad_samples: how many rows may be unusable. They are left out, and listed in OUT/bad_rows.jsonl.
        workers: processes that write; 0: this one.
        shards: files of each split; default: as many as keep each below 1 GiB.
        overwrite: start again from nothing.
        console: where progress is shown.

    Returns:
        The rows of each split, as "edit/train".

    Raises:
        InputError: the source has no known layout, more than `bad_samples` rows cannot be used (names the first; finished shards are kept),
            `out` has shards of another source, or there is too little space.
    """
    require_packages("tensorflow_datasets", "importlib_resources", "array_record", extra="data", feature="A data set")
    source, chat = absolute(source), None if tokenizer is None else ChatTokenizer.from_pretrained(tokenizer)
    name = layout or layout_of(source)
    plugin(layouts(), name, "layout")
    with lock_folder(out):
        work_folder = out / WORK_FOLDER
        if overwrite:
            _remove(out)
        plan: dict[str, Any] = {"layout": name, "source": source.name, "tokenizer": chat.digest if chat else ""}
        old_plan = _read_plan(out)
        if old_plan is not None and (differ := [key for key in plan if plan[key] != old_plan.get(key)]):
            changes = "; ".join(f"{key} was {old_plan.get(key)!r}, is {plan[key]!r}" for key in differ)
            raise InputError(f"{out}: was started with other arguments ({changes}). Choose another folder, or start again (--overwrite).")
        if old_plan is not None and not work_folder.exists():
            return old_plan["rows"]
        with write_errors(out):
            work_folder.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            archives.index_archives(source, work_folder, console)
        finished = {path.name for path in entries(work_folder)}
        shards_to_write, plan = _plan_shards(source, name, tokenizer, work_folder, out, finished, old_plan or plan, shards)
        write_json(work_folder / PLAN, plan)
        for folder in {shard.path.parent for shard in shards_to_write}:
            with write_errors(folder):
                folder.mkdir(exist_ok=True)
        shard_infos = _write(shards_to_write, out, finished, bad_samples, workers, console)
        plan["rows"] = _finish(shard_infos, out, plan)
        if (source / CARD).is_file():
            write_text(out / CARD, (source / CARD).read_text(encoding="utf-8"))
        _remove_folder(work_folder)
        return plan["rows"]


def _plan_shards(
    source: AnyPath,
    name: str,
    tokenizer: str | None,
    work_folder: AnyPath,
    out: AnyPath,
    finished: set[str],
    plan: dict[str, Any],
    shards: int | None,
) -> tuple[list[Shard], dict[str, Any]]:
    """All shards, and the plan with their number; an unfinished plan keeps its numbers. `finished` has the names of existing infos."""
    planned, counts, rows, missing = list[Shard](), dict[str, int](plan.get("shards", {})), dict[str, int](), 0
    open_rows.cache_clear()  # the source may have changed since an earlier call of this process
    for kind in KINDS:
        for split, split_rows in open_rows(source, name, kind, work_folder).items():
            key, size, count = f"{kind}/{split}", estimate_bytes(split_rows), len(split_rows.numbers)
            counts.setdefault(key, shards or -(-size // SHARD_BYTES) or 1)
            split_shards = plan_shards(
                SplitSource(source, name, kind, split, work_folder, tokenizer), count, counts[key], out / kind, work_folder
            )
            missing += size * sum(shard.info_path.name not in finished for shard in split_shards) // len(split_shards)
            planned += split_shards
            rows[key] = count
    if not planned:
        raise InputError(f"{source}: has no rows. Give a data set of the layout {name}: {layouts()[name].expects}.")
    if plan.get("planned", rows) != rows:
        raise InputError(f"{out}: was started when {source} had other rows ({plan['planned']}, now {rows}). Start again (--overwrite).")
    if isinstance(out, Path):
        check_space(out, missing, purpose=os.fspath(out), remedy="Free some space, or choose another folder.")
    return planned, {**plan, "shards": counts, "planned": rows}


def _write(
    shards: list[Shard], out: AnyPath, finished: set[str], allowed: int, workers: int, console: Console | None
) -> dict[Shard, ShardInfo]:
    """Write the missing shards, and return the infos of all shards; stop if more than `allowed` rows are bad."""
    shard_infos, bad = dict[Shard, ShardInfo](), list[str]()

    def add(shard: Shard) -> None:
        shard_infos[shard] = info = read_shard_info(shard.info_path)
        if info.bad:
            fields = ({"kind": shard.rows.kind, "split": shard.rows.split, **row._asdict()} for row in info.bad)
            bad.extend(json.dumps(row, ensure_ascii=False) for row in fields)
            write_text(out / BAD, "".join(f"{line}\n" for line in bad))
        if len(bad) > allowed:
            raise InputError(
                f"{json.loads(bad[0])['error']} {len(bad)} rows so far cannot be used, but --bad-samples allows {allowed}; they are "
                f"listed in {out / BAD}. Repair them or allow more, then run the command again."
            )

    missing = [shard for shard in shards if shard.info_path.name not in finished]
    for shard in shards:
        if shard.info_path.name in finished:
            add(shard)
    show_bar = console is not None and console.is_terminal
    with process_pool(workers) if workers else nullcontext() as pool:
        results = pool.map(write_shard, missing) if pool else map(write_shard, missing)
        progress = track(results, "writing shards", len(missing), console=console, disable=not show_bar, transient=True)
        for shard, _ in zip(missing, progress, strict=True):
            add(shard)
    if bad and console is not None:
        first = json.loads(bad[0])["error"]
        console.out(f"{len(bad)} rows cannot be used, and are listed in {out / BAD}. The first: {first}", highlight=False)
    return {shard: shard_infos[shard] for shard in shards}


def _finish(shard_infos: Mapping[Shard, ShardInfo], out: AnyPath, plan: Mapping[str, Any]) -> dict[str, int]:
    """Write statistics of rows, checksums, and at last the files of TFDS. Return the number of rows by split.

    Raises:
        InputError: no training row can be used.
    """
    kinds: dict[Kind, dict[str, list[ShardInfo]]] = {}
    for shard, info in shard_infos.items():
        kinds.setdefault(shard.rows.kind, {}).setdefault(shard.rows.split, []).append(info)
    rows = {f"{kind}/{split}": sum(len(info.stats) for info in infos) for kind, splits in kinds.items() for split, infos in splits.items()}
    for kind, splits in kinds.items():
        if not rows[f"{kind}/train"]:
            raise InputError(f"{out}: none of the rows of {kind}/train can be used. The first: {splits['train'][0].bad[0].error}")
        for split, infos in splits.items():
            write_stats(stats_path(out / kind, split), _merge_stats(infos, plan["tokenizer"]))
        with new_file(out / kind / SUMS) as scratch:  # as `sha256sum --check` reads it
            lines = (f"{info.sha256}  {shard.path.name}\n" for shard, info in shard_infos.items() if shard.rows.kind == kind)
            scratch.write_text("".join(lines))
    for kind, splits in kinds.items():
        _write_dataset_info(out / kind, kind, splits, {**plan, "rows": rows})
    return rows


def _merge_stats(infos: Sequence[ShardInfo], tokenizer: str) -> SplitStats:
    """The statistics of a split from those of its shards."""
    columns = RowStats(*(np.concatenate([getattr(info.stats, name) for info in infos]) for name in COLUMNS))
    rules, numbers = np.unique([rule for info in infos for rule in info.rules], return_inverse=True)
    return SplitStats(columns, tuple(map(str, rules)), numbers.astype(np.int16), tokenizer)


def _write_dataset_info(folder: AnyPath, kind: Kind, splits: Mapping[str, Sequence[ShardInfo]], plan: Mapping[str, Any]) -> None:
    """Write the files of TFDS for one kind: features, splits (never empty ones), counts, and the plan."""
    from tensorflow_datasets.core.dataset_info import DatasetIdentity

    splits = {split: infos for split, infos in splits.items() if plan["rows"][f"{kind}/{split}"]}
    with tempfile.TemporaryDirectory(prefix="dim_jax-") as scratch:
        tfds_splits = []
        for split, infos in splits.items():
            files: dict[str, Any] = {"data_dir": scratch, "dataset_name": kind, "split": split, "filetype_suffix": "array_record"}
            template = tfds.core.ShardedFileTemplate(template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}", **files)
            lengths, size = [len(info.stats) for info in infos], sum(info.size for info in infos)
            tfds_splits.append(tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=size, filename_template=template))
        statistics = {split: sum((info.statistics for info in infos), DatasetStatistics()).report() for split, infos in splits.items()}
        info = tfds.core.DatasetInfo(
            builder=DatasetIdentity(name=kind, version=tfds.core.Version("1.0.0"), data_dir=scratch, module_name=""),
            features=tfds_features(kind),
            description=DESCRIPTIONS[kind],
            metadata=tfds.core.MetadataDict(statistics=statistics, prepared=dict(plan)),
        )
        info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
        info.set_splits(tfds.core.SplitDict(tfds_splits))
        info.write_to_directory(scratch)
        for path in sorted(Path(scratch).iterdir(), key=lambda path: path.name == INFO):
            with new_file(folder / path.name) as target:
                target.write_bytes(path.read_bytes())


def _read_plan(out: AnyPath) -> dict[str, Any] | None:
    """The plan of an unfinished or finished folder; None: there is none."""
    paths = [out / WORK_FOLDER / PLAN, *(out / kind / "metadata.json" for kind in KINDS)]
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        return None
    try:
        content = json_loads(path.read_text(encoding="utf-8"))
        return content if path.name == PLAN else content["prepared"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is damaged ({error}). Start again (--overwrite).") from error


def _remove(out: AnyPath) -> None:
    """Remove the files of this command from a folder, and nothing else."""
    for folder in (*(out / kind for kind in KINDS if (out / kind / INFO).exists() or (out / WORK_FOLDER).exists()), out / WORK_FOLDER):
        _remove_folder(folder)
    with write_errors(out):
        for name in (BAD, CARD):
            (out / name).unlink(missing_ok=True)


def _remove_folder(folder: AnyPath) -> None:
    if folder.exists():
        with write_errors(folder):
            shutil.rmtree(folder) if isinstance(folder, Path) else folder.rmtree()
