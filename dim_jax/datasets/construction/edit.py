"""Rebuilds DIM-Edit in stages: score, keep, assess, design, write. A killed stage resumes.

    tos_dataset_edit.jsonl    the data set, as DIM-Edit is published: id, image_path, image_path_target, prompt (the blueprint)
    image/                    the pictures of all pairs that the filter kept
    README.md                 counts, lengths, reasons; with statistics.json, statistics.png and scores.png
    stages/scores.jsonl       SSIM, DINO and CLIP similarity of every pair
    stages/pairs.jsonl        the pairs that the filter kept
    stages/assess.jsonl       journal: assessments of the instructions
    stages/blueprints.jsonl   journal: blueprints, written with the target in sight
    stages/rejects.jsonl      every pair that is not in the data set, with stage and reason

Training reads every jsonl of a folder, so those of the stages are in a folder of their own.

Source: the construction of DIM-Edit as Draw-In-Mind describes it (arXiv 2509.01986).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from dim_jax.datasets.construction import card
from dim_jax.datasets.construction.assess import ASSESSMENT, MISALIGNED
from dim_jax.datasets.construction.assess import parse as parse_assessment
from dim_jax.datasets.construction.filtering import ScoredPair, check_bounds, out_of_bounds, score
from dim_jax.datasets.construction.pictures import store
from dim_jax.datasets.construction.sources import Source
from dim_jax.designer.blueprint import BLUEPRINT_WITH_TARGET
from dim_jax.designer.journal import JsonlLog
from dim_jax.designer.runner import Job
from dim_jax.designer.stage_runner import DesignerFactory, StageRunner
from dim_jax.errors import InputError, check, require_packages
from dim_jax.storage.folders import new_file

STAGES = ("score", "keep", "assess", "design", "write")
TABLE = "tos_dataset_edit.jsonl"
SCORES, PAIRS, ASSESSED, DESIGNED, REJECTS = (f"stages/{name}.jsonl" for name in ("scores", "pairs", "assess", "blueprints", "rejects"))


def build(
    folder: Path,
    sources: Sequence[Source],
    config: Mapping[str, Any],
    assessor: DesignerFactory | None,
    designer: DesignerFactory | None,
    runner: StageRunner,
    *,
    until: str = "write",
    beam: Sequence[str] | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Build a data set folder, or continue an unfinished one.

    Args:
        folder: made if it does not exist.
        sources: the pairs to build from.
        config: as dim_edit.toml.
        assessor, designer: the models that assess instructions and write blueprints; not needed before their stages.
        runner: sends their requests, with limits and a budget for both.
        until: the last of `STAGES` to run.
        beam: options of an Apache Beam pipeline that scores, instead of this process.
        console: where a bar is shown, if it is a terminal.

    Returns:
        Counts so far, as in statistics.json.

    Raises:
        InputError: the folder holds something else, two sources have one name, the config has wrong bounds, a package or model is missing,
            a designer is missing or can answer nothing, or a limit ended a stage. Finished work is kept.
    """
    require_packages("skimage", "matplotlib", extra="construction", feature="Building DIM-Edit")
    check_bounds(config["filter"])
    names = [source.name for source in sources]
    check(len(set(names)) == len(names), f"Two sources have one name ({', '.join(names)}), and ids would mix. Rename a file or folder.")
    stages = STAGES[: STAGES.index(until) + 1]
    for stage, writer in (("assess", assessor), ("design", designer)):
        if stage in stages and writer is None:
            raise InputError(f"The stage {stage} needs a designer. Give one (--designer), or stop before it (--until keep).")
    open_folder(folder)
    counts: dict[str, Any] = {}
    if beam is not None:
        require_packages("apache_beam", extra="beam", feature="Scoring on workers")
        from dim_jax.datasets.construction.scaling import score_on_workers

        score_on_workers(sources, config["scores"], folder / SCORES, beam)
    with Progress(console=console, disable=console is None or not console.is_terminal, transient=True) as bar:
        task = bar.add_task("scoring pairs", total=sum(len(source.rows) for source in sources))
        scored = list(score(sources, config["scores"], folder / SCORES, show=lambda count: bar.update(task, completed=count)))
    card.plot_scores(folder / "scores.png", scored, {source.name: source.kind for source in sources}, config["filter"])
    selected, rejects = _filter(scored, sources, config["filter"])
    counts["filter"] = card.filter_counts(scored, selected, rejects)
    pairs = _store_pairs(folder, selected, sources, rejects) if "keep" in stages else []
    if assessor and "assess" in stages:
        jobs = [_job(folder, row, row["prompt"]) for row in pairs]
        answers = runner.stage(folder / ASSESSED, jobs, ASSESSMENT, assessor)
        verdicts = {key: parse_assessment(text) for key, text in answers.texts.items()}
        counts["assess"] = card.assessment_counts(verdicts, answers)
        misaligned = {key: f"misaligned: {assessment.reason}" for key, assessment in verdicts.items() if assessment.verdict == MISALIGNED}
        pairs = drop_rejected(pairs, "assess", answers.reasons | misaligned, rejects)
        if designer and "design" in stages:
            jobs = [_job(folder, row, verdicts[row["id"]].instruction) for row in pairs]
            answers = runner.stage(folder / DESIGNED, jobs, BLUEPRINT_WITH_TARGET, designer)
            counts["design"] = card.answer_counts(answers)
            pairs = [{**row, "prompt": answers.texts[row["id"]]} for row in drop_rejected(pairs, "design", answers.reasons, rejects)]
    write_rows(folder / REJECTS, rejects)
    if "write" in stages:
        write_rows(folder / TABLE, pairs)
        card.write_edit(folder, counts, pairs, rejects, config)
    return counts


def open_folder(folder: Path) -> None:
    """Make a folder to build in, or open one of an earlier build. Raises InputError if it has other files."""
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / "stages").is_dir())):
        raise InputError(f"{folder} is not a folder that this command made. Choose another output.")
    (folder / "stages").mkdir(parents=True, exist_ok=True)


def _filter(scored: Sequence[ScoredPair], sources: Sequence[Source], bounds: Mapping) -> tuple[list[ScoredPair], list[dict]]:
    kinds = {source.name: source.kind for source in sources}
    selected, rejects = [], []
    for pair in scored:
        reason = pair.reason if pair.scores is None else out_of_bounds(kinds[pair.source], pair.scores, bounds)
        if reason:
            scores = {} if pair.scores is None else {"scores": pair.scores._asdict()}
            rejects.append({"id": _id(pair), "stage": "read" if pair.scores is None else "filter", "reason": reason} | scores)
        else:
            selected.append(pair)
    return selected, rejects


def _store_pairs(folder: Path, selected: Sequence[ScoredPair], sources: Sequence[Source], rejects: list[dict]) -> list[dict[str, str]]:
    """A row for each pair that passed the filter, its pictures written; a pair that occurs twice with one instruction is kept once."""
    rows = {source.name: source.rows for source in sources}
    lines = JsonlLog.locked(folder / PAIRS, wait=False)
    try:
        stored_rows = {row["id"]: row for _, row in lines.read()}
        pairs, first_ids = [], dict[tuple[str, ...], str]()
        for pair in selected:
            row = stored_rows.get(_id(pair))
            if row is None:
                entry = rows[pair.source].raw(pair.index)
                assert entry.source is not None
                source, target = (store(folder, picture.read(), picture.picture()) for picture in (entry.source, entry.target))
                row = {"id": _id(pair), "image_path": source, "image_path_target": target, "prompt": entry.texts[0]}
                lines.append(row)
            first_id = first_ids.setdefault((row["image_path"], row["image_path_target"], row["prompt"]), row["id"])
            if first_id == row["id"]:
                pairs.append(row)
            else:
                rejects.append(reject_row(row, "keep", f"the same pair and instruction as {first_id}"))
        return pairs
    finally:
        lines.close()


def _id(pair: ScoredPair) -> str:
    return f"{pair.source}/{pair.key}"


def _job(folder: Path, row: Mapping[str, str], instruction: str) -> Job:
    return Job((folder / row["image_path"], folder / row["image_path_target"]), instruction, dict(row))


def drop_rejected(pairs: Sequence[dict[str, str]], stage: str, reasons: Mapping[str, str], rejects: list[dict]) -> list[dict[str, str]]:
    """The pairs that a stage did not reject; the others go to the rejects."""
    rejects += [reject_row(row, stage, reasons[row["id"]]) for row in pairs if row["id"] in reasons]
    return [row for row in pairs if row["id"] not in reasons]


def reject_row(row: Mapping[str, str], stage: str, reason: str) -> dict[str, str]:
    return {"id": row["id"], "stage": stage, "reason": reason}


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a jsonl, complete or not at all. Errors as in `new_file`."""
    with new_file(path) as scratch, scratch.open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
