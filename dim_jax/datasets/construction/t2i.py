"""Rebuilds DIM-T2I in stages: fetch, pictures, caption, write. A killed stage resumes.

    tos_dataset_t2i.jsonl   the data set: id, image_path, prompt (the caption)
    image/                  the pictures that were found and are large enough
    README.md               counts, lengths, reasons; with statistics.json and statistics.png
    stages/pictures.jsonl   the rows of these pictures; stages/pictures.failures.jsonl has the others with their reasons
    stages/captions.jsonl   journal: captions along the dimensions, if a designer writes them
    stages/rejects.jsonl    every row that is not in the data set, with stage and reason
    UPSTREAM/NAME/          elsewhere: the upstream files of a sub-source, such as tables and archives

Source: the dataset guide of DIM-T2I, whose rules are in dim_t2i.toml.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from dim_jax.datasets.construction import card
from dim_jax.datasets.construction.captions import caption_task
from dim_jax.datasets.construction.download_images import download_pictures
from dim_jax.datasets.construction.edit import drop_rejected, open_folder, reject_row, write_rows
from dim_jax.datasets.construction.upstream import fetch_upstream
from dim_jax.designer.runner import Job
from dim_jax.designer.stage_runner import DesignerFactory, StageRunner
from dim_jax.errors import InputError, require_packages

STAGES = ("fetch", "pictures", "caption", "write")
CAPTIONS, TABLE, REJECTS = "stages/captions.jsonl", "tos_dataset_t2i.jsonl", "stages/rejects.jsonl"


def build(
    folder: Path,
    metadata: Path,
    upstream: Path,
    names: Sequence[str],
    config: Mapping[str, Any],
    writer: DesignerFactory | None,
    runner: StageRunner,
    *,
    fetch: bool = False,
    until: str = "write",
) -> dict[str, Any]:
    """Build a data set folder, or continue an unfinished one.

    Args:
        folder: made if it does not exist.
        metadata: the folder with DIM-T2I's jsonl files, or your own.
        upstream: the folder with the upstream files of each sub-source, in a folder of its name.
        names: the sub-sources, out of config["sources"].
        config: as dim_t2i.toml.
        writer: the designer of captions; None: use the published ones.
        runner: sends its requests, with limits and a budget; `retry_failed` also tries pictures again.
        fetch: download first what `repo` and `archives` of the sub-sources name.
        until: the last of `STAGES` to run.

    Returns:
        Counts so far, as in statistics.json.

    Raises:
        InputError: the folder holds something else, a sub-source is unknown, metadata or upstream files are missing or damaged, a rule is
            wrong, the writer can answer nothing, or a limit ended the stage. Finished work is kept.
    """
    require_packages("httpx2", "matplotlib", extra="construction", feature="Building DIM-T2I")
    if unknown := [name for name in names if name not in config["sources"]]:
        raise InputError(f"There is no sub-source {', '.join(unknown)}. There are: {', '.join(config['sources'])}.")
    open_folder(folder)
    rules = {name: config["sources"][name] for name in names}
    if fetch:
        for name, rule in rules.items():
            fetch_upstream(rule, upstream / name, config["download"])
    counts: dict[str, Any] = {}
    if until == "fetch":
        return counts
    images = download_pictures(folder, metadata, upstream, rules, config, retry_failed=runner.retry_failed, log=runner.log)
    counts["pictures"] = card.picture_counts(rules, images.rows(), images.rejects())

    def rows() -> Iterable[dict[str, str]]:
        return (row for row in images.rows() if row["prompt"])

    def rejects() -> Iterable[dict[str, str]]:
        return chain(images.rejects(), (reject_row(row, "caption", "no published caption") for row in images.rows() if not row["prompt"]))

    if writer and until != "pictures":
        captions = config["captions"]
        task = caption_task(captions["dimensions"], captions["words"], captions["min_words"])
        picture_rows, dropped = list(images.rows()), list(images.rejects())
        jobs = [Job((folder / row["image_path"],), "", {"id": row["id"], "image_path": row["image_path"]}) for row in picture_rows]
        answers = runner.stage(folder / CAPTIONS, jobs, task, writer)
        counts["caption"] = card.answer_counts(answers)
        captioned = [
            {**row, "prompt": answers.texts[row["id"]]} for row in drop_rejected(picture_rows, "caption", answers.reasons, dropped)
        ]
        rows, rejects = (lambda: captioned), (lambda: dropped)
    write_rows(folder / REJECTS, rejects())
    if until == "write":
        write_rows(folder / TABLE, rows())
        card.write_t2i(folder, counts, rows(), rejects())
    images.ledger.close()
    return counts
