"""How well a painter edits emoji that it has not seen: does a result come nearer to the target than to the source, and how near?

Beside the painter stand two baselines: leaving the source as it is, and the autoencoder's reconstruction of the target, which no edit
of this painter can be expected to beat.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from jaxtyping import Float
from PIL import Image
from rich.table import Table
from rich.text import Text

from dim_jax.batching import Request, Source, batches
from dim_jax.data.example import Example
from dim_jax.data.readers import Text as PromptText
from dim_jax.designer.local import LocalDesigner
from dim_jax.designer.stage_runner import Answers
from dim_jax.edit_result import check_output, save_picture
from dim_jax.errors import InputError, check
from dim_jax.evals.benchmark import shuffled_groups
from dim_jax.evals.designs import write_locally
from dim_jax.evals.metrics import mse, psnr, unit_pixels
from dim_jax.evals.pictures import PictureRequest, checkpoint_digest, paint
from dim_jax.evals.rounds import edit_in_rounds, judge_in_batches, scores_by_pair
from dim_jax.pipeline import EditPipeline
from dim_jax.processing.pictures import as_rgb, cover_crop
from dim_jax.sampling import Sampler
from dim_jax.settings import Settings
from dim_jax.sheets import grid, with_caption
from dim_jax.storage.folders import check_file, new_file

PAIRS_PER_RULE, PAIRS = 24, 200
RECONSTRUCTIONS = 500
SHEET_PAIRS = 3  # pairs of each rule on the contact sheet
COLUMNS = {"nearer": "nearer to target", "psnr": "PSNR", "psnr_copy": "source as it is", "psnr_autoencoder": "autoencoder"}


@dataclass(frozen=True)
class Result:
    """The measures of one pair. Errors are mean squared ones on RGB in [0, 1] at the data's size, ratios are in dB.

    Attributes:
        rule, key, instruction: which pair.
        prompt, seed: what it was painted from; the prompt is the instruction or a blueprint.
        mse_target, mse_source: between the result and the target, or the source.
        psnr: of the result against the target.
        psnr_copy: of the source against the target.
        psnr_autoencoder: of the target's reconstruction against the target.
        scores: the judge's of the results of each round (`LocalDesigner.judge`), of which this is the best one; none without a judge.
    """

    rule: str
    key: str
    instruction: str
    prompt: str
    seed: int
    mse_target: float
    mse_source: float
    psnr: float
    psnr_copy: float
    psnr_autoencoder: float
    scores: list[float] = field(default_factory=list)

    @property
    def nearer(self) -> bool:
        """Whether the result is nearer to the target than to the source."""
        return self.mse_target < self.mse_source


def sample(rules: Sequence[str], pairs_per_rule: int | None = None, *, seed: int = 0, selection: bool = False) -> list[int]:
    """Indices of a random sample that is balanced over rules, rule by rule; a larger one of the same seed holds a smaller one.

    `pairs_per_rule` is 24 by default, or as many more as 200 pairs in all need. All pairs are taken of a rule that has fewer.
    `selection`: not these, but as many that come next in the same order, where a rule has more.
    """
    groups = shuffled_groups(rules, seed)
    number = pairs_per_rule or PAIRS_PER_RULE
    largest = max(map(len, groups.values()))
    while pairs_per_rule is None and number < largest and sum(min(number, len(group)) for group in groups.values()) < PAIRS:
        number += 1
    chosen = []
    for _, group in sorted(groups.items()):
        chosen += group[number : 2 * number] if selection else group[:number]
    return chosen


def evaluate(
    pipeline: EditPipeline,
    edits: Sequence[Example],
    captions: Sequence[Example],
    output: Path,
    *,
    data: str,
    pairs_per_rule: int | None = None,
    selection: bool = False,
    text: PromptText = "instruction",
    designer: LocalDesigner | None = None,
    rounds: int = 1,
    judge: LocalDesigner | None = None,
    seed: int = 0,
    settings: Settings | None = None,
    batch_size: int = 16,
    overwrite: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Measure a painter on a balanced sample of pairs; by rule, overall, and pair by pair.

    Results are kept in the folder `output` with ".pictures" for its suffix, and a second run goes on where the first one stopped. At
    the end the report is written to `output`, and a contact sheet (source, result, target) beside it, as a PNG of the same name.

    Args:
        pipeline: the painter.
        edits: pairs of a split that it was not trained on. Of an instruction the first wording is taken.
        captions: every picture of that split; the autoencoder is measured on up to 500 of them.
        output: the JSON to write.
        data: where the pairs come from, for the report.
        pairs_per_rule, selection: see `sample`.
        text: the prompt of an edit: its instruction or its blueprint.
        designer: writes the blueprints from source and instruction, instead of those in the data. They are kept in the folder of the
            results. A pair that it writes none for is painted from its instruction; the report's "failures" say why, by key.
        rounds: how often a pair is painted at most: as long as `judge` does not take a result for done. Its best-judged result counts.
        judge: sees source, result and instruction.
        seed: of the sample and of the noise. Round n, and the n-th of several results, have the noise of the seed `seed` + n - 1.
        settings: by default those of the checkpoint. Of `best_of` results of a pair the one counts that its prompt explains best, or that
            `judge` likes best; the report also says what the exact error would choose, and what a choice at random comes to.
        batch_size: pictures painted at once.
        overwrite: replace `output` and its contact sheet.
        progress: show a bar.

    Raises:
        InputError: there is nothing to measure, an output cannot be written, or as in `EditPipeline`.
    """
    check_outputs(output, overwrite=overwrite)
    if not len(edits) or not len(captions) or batch_size < 1 or (pairs_per_rule is not None and pairs_per_rule < 1):
        raise InputError(
            f"{data}: {len(edits)} pairs and {len(captions)} pictures to measure with, {pairs_per_rule or PAIRS_PER_RULE} pairs a rule in "
            f"batches of {batch_size}. Each must be at least 1: give another data set, or other numbers."
        )
    check(rounds > 0, f"{rounds} rounds: there must be at least 1.")
    check((rounds > 1) == (judge is not None), f"{rounds} rounds {'with' if judge else 'without'} a judge: several need one, and one none.")
    painter = pipeline.sampler
    settings, weights = replace(settings or painter.settings, batch_size=batch_size), checkpoint_digest(painter)
    if judge is None:  # which would choose without comparing prompts
        painter.check_settings(settings)
    best_of, settings = settings.best_of, replace(settings, best_of=1)
    chosen = [edits[i] for i in sample([example.rule for example in edits], pairs_per_rule, seed=seed, selection=selection)]
    check(chosen, f"{data}: no rule has more pairs than the report takes, so none is left to choose by. Take fewer (--pairs-per-rule).")
    folder, blueprints = output.with_suffix(".pictures"), Answers({}, {}, (0, 0))
    if designer is not None:
        blueprints = write_locally(
            designer, folder / "blueprints.jsonl", {_name(example): (source_of(example), example.texts[0]) for example in chosen},
            weights=weights, batch_size=batch_size, progress=progress,
        )  # fmt: skip
    prompts = [_prompt(example, text, None if designer is None else blueprints) for example in chosen]
    writer = "none" if designer is None else designer.name
    rebuilt = painter.reconstruct([example.target for example in chosen], settings)
    results = dict[tuple[int, int], tuple[Image.Image, Result]]()  # by round and pair

    def paint_round(number: int, pairs: Sequence[int]) -> None:
        tasks = [picture_request(chosen[i], prompts[i], writer, seed, number) for i in pairs]
        for i, task, image in zip(pairs, tasks, paint(pipeline, tasks, folder, settings, weights, progress=progress), strict=True):
            results[number, i] = image, _measure(chosen[i], task, image, rebuilt[i])

    def attempt(number: int, pairs: list[int]) -> Float[np.ndarray, " some"]:
        if number >= best_of:
            paint_round(number, pairs)
        if judge is None:
            return np.zeros(len(pairs))
        judged = [(source_of(chosen[i]), results[number, i][0], chosen[i].texts[0]) for i in pairs]
        return judge_in_batches(judge, judged, batch_size)

    for number in range(best_of):
        paint_round(number, range(len(chosen)))
    states = edit_in_rounds(len(chosen), rounds, attempt)
    measured = [[results[number, i][1] for i, number in enumerate(state.best.tolist())] for state in states]
    scores, final = scores_by_pair(states) if judge else [[] for _ in chosen], states[-1].best.tolist()
    if judge is None and best_of > 1:
        sources = [Source(as_rgb(source_of(example))) for example in chosen]
        requests = [pipeline.request(prompt, source, 0, settings) for prompt, source in zip(prompts, sources, strict=True)]
        pictures = [[results[number, i][0] for i in range(len(chosen))] for number in range(best_of)]
        final = _best_explained(painter, requests, pictures, settings)
    rows = [replace(results[number, i][1], scores=scores[i]) for i, number in enumerate(final)]
    report = {
        "data": data, "checkpoint": painter.name, "weights": weights, "dtype": painter.dtype, "seed": seed,
        "text": text, "designer": writer, "failures": blueprints.reasons,
        "settings": {key: value for key, value in asdict(settings).items() if value is not None},
        "overall": summary(rows),
        "rules": {rule: summary(list(group)) for rule, group in groupby(rows, lambda row: row.rule)},
        "judge": "none" if judge is None else judge.name,
        "rounds": [
            {"painted": len(state.painted), "done": float(np.mean(state.best_scores > 0))} | summary(after)
            for state, after in zip(states, measured, strict=True)
        ],
        "best_of": _best_of([[results[number, i][1] for number in range(best_of)] for i in range(len(chosen))]),
        "autoencoder": _autoencoder(painter, captions, settings, seed),
        "pairs": [asdict(row) for row in rows],
    }  # fmt: skip
    write_outputs(output, report, _sheet(chosen, [results[number, i][0] for i, number in enumerate(final)]))
    return report


def check_outputs(output: Path, *, overwrite: bool) -> None:
    """Refuses an output of `evaluate` before anything is loaded.

    Raises:
        InputError: it does not end in .json, or it or its contact sheet may not be written.
    """
    check(output.suffix.lower() == ".json", f"{output}: the report is written as JSON. Name a file that ends in .json.")
    check_file(output, overwrite=overwrite)
    check_output(output.with_suffix(".png"), overwrite=overwrite)


def write_outputs(output: Path, report: Mapping[str, Any], sheet: Image.Image) -> None:
    """Writes what `check_outputs` allowed: the contact sheet, then the report, which is never there without one.

    Raises:
        InputError: they cannot be written.
    """
    with new_file(output) as scratch:
        scratch.write_text(json.dumps(report, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        save_picture(sheet, output.with_suffix(".png"), overwrite=True)


def summary(results: Sequence[Result]) -> dict[str, int | float]:
    """Number of pairs, the share that came nearer to the target than to the source, and means of the ratios (dB)."""
    return {"pairs": len(results)} | {name: float(np.mean([getattr(row, name) for row in results])) for name in COLUMNS}


def _best_explained(
    painter: Sampler, requests: Sequence[Request], pictures: Sequence[Sequence[Image.Image]], settings: Settings
) -> list[int]:
    """Of the results of each request, one in each of `pictures`, the number of that which the prompt explains best."""

    def scores(results: Sequence[Image.Image]) -> Float[np.ndarray, " n"]:
        size, groups = requests[0].size, batches([None] * len(results), settings.batch_size)
        latents = [np.asarray(painter.encode(batch.fill(results), size))[: len(batch.indices)] for batch in groups]
        return painter.prompt_alignment(requests, np.concatenate(latents), settings)

    return np.argmax([scores(results) for results in pictures], 0).tolist()


def _best_of(results: Sequence[Sequence[Result]]) -> dict[str, Any]:
    """Of the results of each pair: how many there are, what the exact error would choose, and the mean over a choice at random."""
    best = [min(group, key=lambda row: (not row.nearer, row.mse_target)) for group in results]
    means = [summary(column) for column in zip(*results, strict=True)]
    return {
        "results": len(means), "oracle": summary(best),
        "random": {name: float(np.mean([mean[name] for mean in means])) for name in means[0]},
    }  # fmt: skip


def table(report: Mapping[str, Any]) -> Table:
    """The report by rule, for people."""
    model = report["autoencoder"]
    table = Table(caption=f"PSNR in dB. The autoencoder alone, over {model['pictures']} pictures: {model['psnr']:.2f} dB.")
    for column in ("rule", "pairs", *COLUMNS.values()):
        table.add_column(column, justify="left" if column == "rule" else "right", no_wrap=column == "rule")
    for rule, row in (*report["rules"].items(), ("all", report["overall"])):
        if rule == "all":
            table.add_section()
        table.add_row(Text(rule), str(row["pairs"]), f"{row['nearer']:.0%}", *(f"{row[name]:.2f}" for name in list(COLUMNS)[1:]))
    return table


def rounds_table(report: Mapping[str, Any]) -> list[Table]:
    """What rounds and several results come to, for people; none where there was one."""
    best_of, several = report["best_of"], report["best_of"]["results"]
    rows = [(f"round {number}", row, str(row["painted"])) for number, row in enumerate(report["rounds"], 1)]
    if several > 1:
        rows += [(f"best of {several}, by prompt", report["overall"], "")] if report["judge"] == "none" else []
        rows += [(f"best of {several}, {name}", best_of[name], "") for name in ("oracle", "random")]
    if len(rows) < 2:
        return []
    table = Table(caption="After each round the result counts that the judge likes best. The oracle is the exact error.")
    for column in ("", "painted", COLUMNS["nearer"], COLUMNS["psnr"]):
        table.add_column(column, justify="right" if column else "left")
    for name, row, painted in rows:
        table.add_row(name, painted, f"{row['nearer']:.1%}", f"{row['psnr']:.2f}")
    return [table]


def _name(example: Example) -> str:
    return f"{example.rule}/{example.key}"


def source_of(example: Example) -> Image.Image:
    if example.source is None:
        raise InputError(f"{example.key}: has no source to edit. Give pairs (kind 'edit').")
    return example.source


def _prompt(example: Example, text: PromptText, written: Answers | None) -> str:
    """What the painter reads of a pair; `written`: by a designer, None: the data's own blueprint."""
    if text == "instruction":
        return example.texts[0]
    if written is not None:
        return written.texts.get(_name(example), example.texts[0])
    if example.blueprint is None:
        raise InputError(f"{example.key}: has no blueprint. Take instructions (--text instruction), or a designer (--designer local).")
    return example.blueprint


def picture_request(example: Example, prompt: str, designer: str, seed: int, number: int = 0) -> PictureRequest:
    """The task of a pair in the round of a number.

    Its noise depends on the pair and on the sum of seed and number, not on what else is in the sample, nor on the prompt.
    """
    source = source_of(example)
    noise_seed = zlib.crc32(source.tobytes(), zlib.crc32(f"{seed + number} {example.key}".encode())) >> 1
    name, instruction = f"{quote(example.rule, safe=' ')}/{quote(example.key, safe=' ')}", example.texts[0]
    name += f".{number + 1}" if number else ""
    return PictureRequest(name, prompt, source, noise_seed, designer, "" if prompt == instruction else instruction)


def _measure(example: Example, task: PictureRequest, result: Image.Image, rebuilt: Image.Image) -> Result:
    size = (example.target.height, example.target.width)
    pictures = (source_of(example), example.target, result, rebuilt)
    source, target, painted, again = (unit_pixels(picture, size) for picture in pictures)
    error = mse(painted, target)
    return Result(
        example.rule, example.key, example.texts[0], task.prompt, task.seed, error, mse(painted, source),
        psnr(error), psnr(mse(source, target)), psnr(mse(again, target)),
    )  # fmt: skip


def _autoencoder(painter: Sampler, captions: Sequence[Example], settings: Settings, seed: int) -> dict[str, int | float]:
    """Mean PSNR (dB) of reconstructions, over up to `RECONSTRUCTIONS` pictures drawn by the seed."""
    order = np.random.default_rng(seed).permutation(len(captions))[:RECONSTRUCTIONS]
    pictures = [captions[int(i)].target for i in order]
    ratios = []
    for picture, rebuilt in zip(pictures, painter.reconstruct(pictures, settings), strict=True):
        size = (picture.height, picture.width)
        ratios.append(psnr(mse(unit_pixels(rebuilt, size), unit_pixels(picture, size))))
    return {"pictures": len(ratios), "psnr": float(np.mean(ratios))}


def _sheet(examples: Sequence[Example], results: Sequence[Image.Image]) -> Image.Image:
    """A line for each rule, a few pairs on it: source, result, target, the instruction below."""
    lines: dict[str, list[Image.Image]] = {}
    for example, result in zip(examples, results, strict=True):
        line = lines.setdefault(example.rule, [])
        if len(line) < SHEET_PAIRS:
            row = [source_of(example), cover_crop(result, (example.target.height, example.target.width)), example.target]
            line.append(with_caption(row, f"{example.rule}: {example.texts[0]}", zoom=2))
    return grid(list(lines.values()))
