"""`dim prepare`: any data set as it was downloaded, as the one format that training reads (`data/dataset.py`).

    dim prepare data/DIM-Edit data/prepared/DIM-Edit --tokenizer models/Qwen2.5-VL-3B-Instruct --workers 16

Shards are written one by one, and an interrupted call goes on with those that are missing. What is noted meanwhile lies in OUT/.prepare.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from rich.console import Console
from rich.progress import track

from dim_jax.data.chat import ChatTokenizer
from dim_jax.data.dataset import INFO, StoredStats, stats_path, write_stats
from dim_jax.data.example import KINDS
from dim_jax.data.row_stats import COLUMNS, RowStats
from dim_jax.data.workers import process_pool
from dim_jax.datasets.layouts import archives, layout_of, layouts, open_splits
from dim_jax.datasets.shards import Rows, Shard, Written, cut, estimate, features_of, read_note, write_shard
from dim_jax.datasets.statistics import Tally
from dim_jax.errors import InputError, require
from dim_jax.storage.disk import check_space
from dim_jax.storage.folders import new_file, writing
from dim_jax.storage.locks import lock_folder
from dim_jax.storage.paths import AnyPath, absolute, entries, upload

SHARD_BYTES = 2**30
NOTES, PLAN, BAD, SUMS = ".prepare", "plan.json", "bad_rows.jsonl", "SHA256SUMS"
DESCRIPTIONS = {"edit": "Edits: a source, an instruction, a target.", "caption": "Pictures and their captions."}


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
    """Write a prepared data set, or what is missing of it.

    Args:
        source: the folder of a data set as it was downloaded or built, or one jsonl file; or in a bucket.
        out: the folder to make, also in a bucket. One that is finished is left as it is.
        layout: the name of the source's layout, where several would fit.
        tokenizer: folder or hub id of the encoder's, which counts the tokens of every text. Without one, each training run counts anew.
        bad_samples: how many rows may be unusable. They are left out, and listed in OUT/bad_rows.jsonl.
        workers: processes that write; 0: this one.
        shards: files of each split; default: as many as keep each below 1 GiB.
        overwrite: begin anew.
        console: where progress is shown.

    Returns:
        The rows of each split, as "edit/train".

    Raises:
        InputError: the source has no known layout, more than `bad_samples` rows cannot be used (names the first; what was written is kept),
            `out` was begun from something else, or there is too little space.
    """
    require("tensorflow_datasets", "importlib_resources", "array_record", extra="data", what="A data set")
    source, chat = absolute(source), None if tokenizer is None else ChatTokenizer.from_pretrained(tokenizer)
    name = layout or layout_of(source)
    if name not in layouts():
        raise InputError(f"{name}: no such layout. There are {', '.join(layouts())}.")
    with lock_folder(out):
        notes = out / NOTES
        if overwrite:
            _remove(out)
        plan: dict[str, Any] = {"layout": name, "source": source.name, "tokenizer": chat.digest if chat else ""}
        known = _read_plan(out)
        if known is not None and (differ := [key for key in plan if plan[key] != known.get(key)]):
            said = "; ".join(f"{key} was {known.get(key)!r}, is {plan[key]!r}" for key in differ)
            raise InputError(f"{out}: was begun from something else ({said}). Choose another folder, or begin anew (--overwrite).")
        if known is not None and not notes.exists():
            return known["rows"]
        with writing(out):
            notes.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            archives.index_archives(source, notes, console)
        todo, plan = _planned(source, name, tokenizer, notes, out, known or plan, shards)
        with new_file(notes / PLAN) as scratch:
            scratch.write_text(json.dumps(plan, indent=1) + "\n")
        for folder in {shard.path.parent for shard in todo}:
            with writing(folder):
                folder.mkdir(exist_ok=True)
        _write(todo, out, bad_samples, workers, console)
        _finish(todo, out, plan)
        _remove_folder(notes)
        return plan["rows"]


def _planned(
    source: AnyPath, name: str, tokenizer: str | None, notes: AnyPath, out: AnyPath, plan: dict[str, Any], shards: int | None
) -> tuple[list[Shard], dict[str, Any]]:
    """Every shard of the data set, and the plan with their numbers; one that was begun keeps its own."""
    found, counts, rows = list[Shard](), dict[str, int](plan.get("shards", {})), dict[str, int]()
    written, missing = {path.name for path in entries(notes)}, 0
    for kind in KINDS:
        splits = open_splits(source, name, kind, notes)
        for split, some in splits.items():
            key, size = f"{kind}/{split}", estimate(some)
            counts.setdefault(key, shards or -(-size // SHARD_BYTES) or 1)
            here = cut(Rows(source, name, kind, split, notes, tokenizer), len(some.numbers), counts[key], out / kind, notes)
            missing += size * sum(shard.note.name not in written for shard in here) // len(here)
            found += here
            rows[key] = len(some.numbers)
    if not found:
        raise InputError(f"{source}: has no rows. Give a data set of the layout {name}: {layouts()[name].expects}.")
    if plan.get("planned", rows) != rows:
        raise InputError(f"{out}: was begun when {source} had other rows ({plan['planned']}, now {rows}). Begin anew (--overwrite).")
    if isinstance(out, Path):
        check_space(out, missing, what=os.fspath(out), remedy="Free some space, or choose another folder.")
    return found, {**plan, "shards": counts, "planned": rows}


def _write(todo: list[Shard], out: AnyPath, allowed: int, workers: int, console: Console | None) -> None:
    """Write the shards that are missing; stop where more rows are bad than `allowed`."""
    bad = list[str]()

    def check(shard: Shard) -> None:
        rows, new = shard.rows, read_note(shard.note).bad
        fields = ({"kind": rows.kind, "split": rows.split, **one._asdict()} for one in new)
        bad.extend(json.dumps(one, ensure_ascii=False) for one in fields)
        if new:
            with new_file(out / BAD) as scratch:
                scratch.write_text("".join(f"{line}\n" for line in bad), encoding="utf-8")
        if len(bad) > allowed:
            raise InputError(
                f"{json.loads(bad[0])['error']} {len(bad)} rows so far cannot be used, but {allowed} may be (--bad-samples); they are "
                f"listed in {out / BAD}. The same command goes on."
            )

    written = {path.name for path in entries(out / NOTES)}
    for shard in todo:
        if shard.note.name in written:
            check(shard)
    missing = [shard for shard in todo if shard.note.name not in written]
    shown = console is not None and console.is_terminal
    options: dict[str, Any] = {"total": len(missing), "console": console, "disable": not shown, "transient": True}
    if workers:
        with process_pool(workers) as pool:
            for shard, _ in track(zip(missing, pool.map(write_shard, missing), strict=True), "writing shards", **options):
                check(shard)
    else:
        for shard in track(missing, "writing shards", **options):
            write_shard(shard)
            check(shard)
    if bad and console is not None:
        console.out(
            f"{len(bad)} rows cannot be used, and are listed in {out / BAD}. The first: {json.loads(bad[0])['error']}", highlight=False
        )


def _finish(todo: list[Shard], out: AnyPath, plan: dict[str, Any]) -> None:
    """What is said of each kind's shards: statistics of rows, checksums, and what TFDS reads, which comes last."""
    plan["rows"] = {}
    for kind in dict.fromkeys(shard.rows.kind for shard in todo):
        here = [shard for shard in todo if shard.rows.kind == kind]
        written = {shard: read_note(shard.note) for shard in here}
        by_split = {split: [shard for shard in here if shard.rows.split == split] for split in dict.fromkeys(s.rows.split for s in here)}
        for split, some in by_split.items():
            plan["rows"][f"{kind}/{split}"] = count = sum(len(written[shard].stats) for shard in some)
            if not count and split == "train":
                raise InputError(f"{out}: none of the rows of {kind}/{split} can be used. The first: {written[some[0]].bad[0].error}")
            write_stats(stats_path(out / kind, split), _joined([written[shard] for shard in some], plan["tokenizer"]))
        with new_file(out / kind / SUMS) as scratch:
            scratch.write_text(
                "".join(f"{written[shard].sha256}  {shard.path.name}\n" for shard in here)
            )  # as `sha256sum --check` reads it
    for kind in dict.fromkeys(shard.rows.kind for shard in todo):
        _describe(out / kind, [shard for shard in todo if shard.rows.kind == kind], plan)


def _joined(written: Iterable[Written], tokenizer: str) -> StoredStats:
    """The numbers of a split from those of its shards."""
    some = list(written)
    columns = RowStats(*(np.concatenate([getattr(one.stats, name) for one in some]) for name in COLUMNS))
    rules, numbers = np.unique([rule for one in some for rule in one.rules], return_inverse=True)
    return StoredStats(columns, tuple(map(str, rules)), numbers.astype(np.int16), tokenizer)


def _describe(folder: AnyPath, shards: list[Shard], plan: Mapping[str, Any]) -> None:
    """Write what TFDS reads of one kind: features, splits, counts, and the plan."""
    from tensorflow_datasets.core.dataset_info import DatasetIdentity

    with tempfile.TemporaryDirectory(prefix="dim_jax-") as scratch:
        rows = shards[0].rows
        identity = DatasetIdentity(name=rows.kind, version=tfds.core.Version("1.0.0"), data_dir=scratch, module_name="")
        splits, statistics = [], {}
        for split in dict.fromkeys(shard.rows.split for shard in shards):
            written = [read_note(shard.note) for shard in shards if shard.rows.split == split]
            if not plan["rows"][f"{rows.kind}/{split}"]:  # TFDS has no empty splits
                continue
            files: dict[str, Any] = {"data_dir": scratch, "dataset_name": rows.kind, "split": split, "filetype_suffix": "array_record"}
            lengths, size = [len(one.stats) for one in written], sum(one.size for one in written)
            template = tfds.core.ShardedFileTemplate(template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}", **files)
            splits.append(tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=size, filename_template=template))
            statistics[split] = sum((one.tally for one in written), Tally()).report()
        info = tfds.core.DatasetInfo(
            builder=identity, features=features_of(rows.kind), description=DESCRIPTIONS[rows.kind],
            metadata=tfds.core.MetadataDict(statistics=statistics, prepared=dict(plan)),
        )  # fmt: skip
        info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
        info.set_splits(tfds.core.SplitDict(splits))
        info.write_to_directory(scratch)
        for path in sorted(Path(scratch).iterdir(), key=lambda path: path.name == INFO):
            if isinstance(folder, Path):
                with new_file(folder / path.name) as target:
                    target.write_bytes(path.read_bytes())
            else:
                upload(path, folder / path.name)


def _read_plan(out: AnyPath) -> dict[str, Any] | None:
    """The plan of a folder that was begun or finished."""
    paths = [out / NOTES / PLAN, *(out / kind / "metadata.json" for kind in KINDS)]
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if path.name == PLAN else found["prepared"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is damaged ({error}). Begin anew (--overwrite).") from error


def _remove(out: AnyPath) -> None:
    """Remove what this command wrote to a folder, and nothing else."""
    for folder in (*(out / kind for kind in KINDS if (out / kind / INFO).exists() or (out / NOTES).exists()), out / NOTES):
        _remove_folder(folder)
    with writing(out):
        (out / BAD).unlink(missing_ok=True)


def _remove_folder(folder: AnyPath) -> None:
    if folder.exists():
        with writing(folder):
            shutil.rmtree(folder) if isinstance(folder, Path) else folder.rmtree()
