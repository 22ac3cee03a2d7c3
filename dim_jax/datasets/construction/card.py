"""The files beside a built data set: counts, reasons, lengths in words, plots, and the README."""

import re
import statistics
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dim_jax.datasets.construction.assess import VERDICTS, Assessment
from dim_jax.datasets.construction.filtering import ScoredPair
from dim_jax.datasets.construction.scores import Scores
from dim_jax.designer.stage_runner import Answers
from dim_jax.markdown import markdown_table
from dim_jax.storage.folders import new_file, write_json, write_text

PUBLISHED_T2I = {"pictures": 14_000_000, "words": 146.76}  # the same; some 6.3 million are released
PUBLISHED_EDIT = {"pairs": 233_000, "words": 252.64}  # arXiv 2509.01986
BINS = 40


def count_words(text: str) -> int:
    """By spaces, as the published lengths are counted: GPT-4o's published blueprints of ImgEdit have 257.5 that way."""
    return len(text.split())


def length_statistics(counts: Iterable[int]) -> dict[str, float]:
    """Mean, median, shortest and longest, of texts with so many words."""
    counts = sorted(counts) or [0]
    return {
        "mean": round(statistics.fmean(counts), 2), "median": statistics.median(counts), "shortest": counts[0], "longest": counts[-1],
    }  # fmt: skip


def filter_counts(scored: Sequence[ScoredPair], selected: Sequence[ScoredPair], rejects: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts of the joint filter: by source, and by the scores that were out of bounds (a pair may have several)."""
    reasons = Counter(part.partition(" ")[0] for row in rejects if row["stage"] == "filter" for part in row["reason"].split(", "))
    pair_counts = Counter(pair.source for pair in scored)
    selected_counts = Counter(pair.source for pair in selected)
    return {
        "pairs": len(scored), "kept": len(selected), "unreadable": sum(pair.scores is None for pair in scored),
        "out of bounds": {name: reasons[name] for name in Scores._fields},
        "sources": {name: {"pairs": number, "kept": selected_counts[name]} for name, number in pair_counts.items()},
    }  # fmt: skip


def assessment_counts(verdicts: Mapping[str, Assessment], answers: Answers) -> dict[str, Any]:
    """Counts of the quality assessment."""
    counts = Counter(assessment.verdict for assessment in verdicts.values())
    return {verdict: counts[verdict] for verdict in VERDICTS} | answer_counts(answers)


def answer_counts(answers: Answers) -> dict[str, Any]:
    """Counts of the answers of a stage."""
    return {
        "answered": len(answers.texts), "failed": len(answers.reasons), "reasons": by_reason(answers.reasons.values()),
        "tokens": {"in": answers.tokens[0], "out": answers.tokens[1]},
    }  # fmt: skip


def by_reason(reasons: Iterable[str]) -> dict[str, int]:
    """How often each; what stands after the first colon differs from one to the next."""
    return dict(Counter(reason.partition(":")[0] for reason in reasons).most_common())


def plot_scores(
    path: Path, scored: Sequence[ScoredPair], kinds: Mapping[str, str], bounds: Mapping[str, Mapping[str, Sequence[float]]]
) -> None:
    """A histogram of each score of each source, with the bounds that apply, and the deciles."""
    sources = list(dict.fromkeys(pair.source for pair in scored))
    figure, plots = _figure(len(sources), len(Scores._fields))
    for source, row in zip(sources, plots, strict=True):
        for name, plot in zip(Scores._fields, row, strict=True):
            values = [getattr(pair.scores, name) for pair in scored if pair.scores and pair.source == source]
            plot.hist(values, BINS, color="0.6")
            for bound in bounds.get(kinds[source], {}).get(name, ()):
                plot.axvline(bound, color="tab:red")
            deciles = statistics.quantiles(values, n=10) if len(values) > 1 else values
            plot.set_title(f"{source}: {name.upper()} of {len(values)}", fontsize=9)
            plot.set_xlabel("tenths of the pairs: " + " ".join(f"{value:.2f}" for value in deciles), fontsize=6)
    _save(figure, path)


def plot_words(path: Path, counts: Sequence[int], published: float) -> None:
    """A histogram of lengths in words, beside the published mean."""
    figure, ((plot,),) = _figure(1, 1)
    plot.hist(counts, BINS, color="0.6")
    mean = statistics.fmean(counts) if counts else 0.0
    plot.axvline(mean, color="tab:blue", label=f"mean {mean:.2f}")
    plot.axvline(published, color="tab:red", label=f"published mean {published}")
    plot.set_xlabel("words")
    plot.legend(fontsize=8)
    _save(figure, path)


def write_edit(
    folder: Path,
    counts: Mapping[str, Any],
    pairs: Sequence[Mapping[str, str]],
    rejects: Sequence[Mapping[str, Any]],
    config: Mapping[str, Any],
) -> None:
    """README.md, statistics.json and statistics.png of a rebuilt DIM-Edit. Adds the final numbers to `counts`."""
    texts = [row["prompt"] for row in pairs]
    stats = length_statistics(map(count_words, texts))
    total = {**counts, "pairs": len(pairs), "words": stats, "published": PUBLISHED_EDIT, "config": config}
    write_json(folder / "statistics.json", total)
    plot_words(folder / "statistics.png", [count_words(text) for text in texts], PUBLISHED_EDIT["words"])
    filtering, assessing = counts["filter"], counts["assess"]
    dropped = Counter(row["stage"] for row in rejects)
    reasons = Counter((row["stage"], _shorten_reason(row)) for row in rejects if row["stage"] != "filter")
    readable = filtering["pairs"] - dropped["read"]
    stages = [("read", filtering["pairs"], dropped["read"]), ("joint filter", readable, dropped["filter"])]
    for stage, name in (("keep", "the same pair again"), ("assess", "instruction assessed"), ("design", "blueprint written")):
        stages.append((name, stages[-1][1] - stages[-1][2], dropped[stage]))
    page = [
        "# Edit pairs with blueprints, in the form of DIM-Edit",
        "`tos_dataset_edit.jsonl`: `id`, `image_path` (source), `image_path_target`, `prompt` (blueprint). Others: `stages/rejects.jsonl`.",
        markdown_table(("stage", "in", "dropped", "out"), [(name, read, out, read - out) for name, read, out in stages]),
        f"Out of bounds (a pair may be so in several scores): {_listed(filtering['out of bounds'])}.",
        f"Verdicts: {_listed({name: assessing[name] for name in VERDICTS})}. These are dropped, completed and disambiguated.",
        _words_table(
            "blueprint", len(pairs), stats, ("DIM-Edit, published", f"about {PUBLISHED_EDIT['pairs']:,}", PUBLISHED_EDIT["words"])
        ),
        "![Lengths of the blueprints](statistics.png)",
        "![Scores of the joint filter](scores.png)",
        "## Sources",
        markdown_table(("source", "pairs", "after the filter"), [(name, *row.values()) for name, row in filtering["sources"].items()]),
        "## Reasons",
        markdown_table(("stage", "reason", "pairs"), [(*names, number) for names, number in reasons.most_common()]),
    ]
    write_text(folder / "README.md", "\n\n".join(page) + "\n")


def _shorten_reason(reject: Mapping[str, Any]) -> str:
    """A reason without what differs from one pair to the next: the name of a file before it, details after it."""
    reason = reject["reason"].partition(": ")[2] if reject["stage"] == "read" else reject["reason"]
    return re.split(r": | \(| as ", reason or reject["reason"])[0]


def picture_counts(
    rules: Mapping[str, Mapping[str, Any]], rows: Iterable[Mapping[str, str]], rejects: Iterable[Mapping[str, str]]
) -> dict[str, Any]:
    """Counts of pictures by sub-source, beside the published numbers of samples."""
    taken, rejected = (Counter(row["id"].partition("/")[0] for row in part) for part in (rows, rejects))
    return {name: {"published": rule.get("samples"), "taken": taken[name], "rejected": rejected[name]} for name, rule in rules.items()}


def write_t2i(folder: Path, counts: Mapping[str, Any], rows: Iterable[Mapping[str, str]], rejects: Iterable[Mapping[str, Any]]) -> None:
    """README.md, statistics.json and statistics.png of a rebuilt DIM-T2I."""
    sizes = array("I", (count_words(row["prompt"]) for row in rows))
    stats, reasons = length_statistics(sizes), Counter((row["stage"], _shorten_reason(row)) for row in rejects)
    total = {**counts, "rows": len(sizes), "words": stats, "published": PUBLISHED_T2I}
    write_json(folder / "statistics.json", total)
    plot_words(folder / "statistics.png", sizes, PUBLISHED_T2I["words"])
    page = [
        "# Pictures with long captions, in the form of DIM-T2I",
        "`tos_dataset_t2i.jsonl`: `id`, `image_path`, `prompt` (the caption). Other rows: `stages/rejects.jsonl`.",
        markdown_table(
            ("sub-source", "published", "taken", "rejected"), [(name, *row.values()) for name, row in counts["pictures"].items()]
        ),
        _words_table("caption", len(sizes), stats, ("DIM-T2I, published", f"about {PUBLISHED_T2I['pictures']:,}", PUBLISHED_T2I["words"])),
        "![Lengths of the captions](statistics.png)",
        "## Reasons",
        markdown_table(("stage", "reason", "rows"), [(*names, number) for names, number in reasons.most_common()]),
    ]
    write_text(folder / "README.md", "\n\n".join(page) + "\n")


def _words_table(noun: str, count: int, word_stats: Mapping[str, float], published: Sequence[Any]) -> str:
    return markdown_table((f"words of a {noun}", "number", *word_stats), [("here", count, *word_stats.values()), published])


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in counts.items())


def _figure(rows: int, columns: int) -> Any:
    from matplotlib.figure import Figure  # not pyplot, which needs a display

    figure = Figure(figsize=(4.2 * columns, 2.8 * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _save(figure: Any, path: Path) -> None:
    with new_file(path) as scratch, scratch.open("wb") as file:
        figure.savefig(file, format="png", dpi=110)
