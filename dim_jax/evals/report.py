"""The report of an evaluation: everything as JSON, tables in Markdown beside published rows, and a page that stands alone.

It is computed from what lies in the folders of one run or of two, and asks nobody: the same files give the same bytes.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from dim_jax.designer.limits import Price
from dim_jax.errors import InputError
from dim_jax.evals import bootstrap, page, sheets
from dim_jax.evals.benchmark import Benchmark, Case, read_finished
from dim_jax.evals.judge import Judgement, painted_tracks, read_judgements
from dim_jax.evals.protocols import Protocol
from dim_jax.evals.scoring import agreement, summary
from dim_jax.storage.folders import make_folder, write_text
from dim_jax.storage.paths import read_object

NAME = "report"


def write(
    out: Path,
    benchmark: Benchmark,
    cases: Sequence[Case],
    runs: Mapping[str, Path],
    protocol: Protocol | None = None,
    *,
    price: Callable[[str], Price | None] = lambda judge: None,
    official_seed: int | None = None,
) -> dict[str, Any]:
    """Write report.json, report.md and report.html to `out`; returns what the JSON holds.

    Args:
        out: the folder, which is made.
        benchmark, cases: what was painted.
        runs: folders of evaluations by the name that they have in the report; two are compared.
        protocol: what judges were asked; None where nobody judges.
        price: of a judge.
        official_seed: also compute what the makers' scripts would; random numbers in them are drawn with it.

    Raises:
        InputError: nothing is painted, a file of a run is damaged, or a picture cannot be read.
    """
    report = build(benchmark, cases, runs, protocol, price=price, official_seed=official_seed)
    make_folder(out)
    tables = sheets.report_tables(report)
    texts = {
        "json": lambda: json.dumps(report, ensure_ascii=False, indent=1, allow_nan=False) + "\n",
        "md": lambda: sheets.to_markdown(report, tables),
        "html": lambda: page.html(report, tables, cases, runs),
    }
    for ending, text in texts.items():
        write_text(out / f"{NAME}.{ending}", text())
    return report


def build(
    benchmark: Benchmark,
    cases: Sequence[Case],
    runs: Mapping[str, Path],
    protocol: Protocol | None,
    *,
    price: Callable[[str], Price | None] = lambda judge: None,
    official_seed: int | None = None,
) -> dict[str, Any]:
    """What report.json holds. Arguments and errors as for `write`."""
    tracks = {(run, track): out / track for run, out in runs.items() for track in painted_tracks(out)}
    if empty := sorted(set(runs) - {run for run, _ in tracks}):
        raise InputError(f"{runs[empty[0]]}: nothing is painted there. Generate pictures first (--stage generate).")
    judgements = {key: read_judgements(folder, cases, protocol) if protocol else [] for key, folder in tracks.items()}
    measures = {key: _measures(folder) for key, folder in tracks.items()}
    report: dict[str, Any] = {
        "benchmark": benchmark.name,
        "title": benchmark.title,
        "cases_of_the_benchmark": len(cases),
        "runs": {run: _read_if_file(out / "run.json") for run, out in runs.items()},
        "protocol": None,
        "tracks": [],
        "agreement": [],
        "published": [row.__dict__ | {"scores": dict(row.scores)} for row in benchmark.published],
    }
    if protocol:
        report["protocol"] = {
            "name": protocol.name, "source": protocol.source, "wording": protocol.wording, "version": protocol.version,
            "main": protocol.main, "average": protocol.average, "official_seed": official_seed,
            "scales": {name: [scale.low, scale.high] for name, scale in protocol.metrics.items()},
        }  # fmt: skip
    for (run, track), folder in tracks.items():
        judges = {}
        for judgement in judgements[run, track]:
            assert protocol is not None
            judges[judgement.judge] = summary(judgement, protocol, benchmark.subsets, official_seed=official_seed)
            cost = price(judgement.judge)
            judges[judgement.judge]["dollars"] = cost.dollars(judgement.tokens_in, judgement.tokens_out) if cost else None
        finished = read_finished(folder)
        painted = sum(case.id in finished for case in cases)
        measured = {key: value for key, value in measures[run, track].items() if key != "cases"}
        report["tracks"].append({"run": run, "track": track, "painted": painted, "judges": judges, "measures": measured})
        if protocol:
            pairs = combinations(judgements[run, track], 2)
            report["agreement"] += [{"run": run, "track": track, **agreement(a, b, protocol)} for a, b in pairs]
    report["comparisons"] = _comparisons(tracks, judgements, measures, protocol)
    report["cases"] = _cases(cases, tracks, judgements, measures)
    return report


def _read_if_file(path: Path) -> dict[str, Any]:
    return read_object(path) if path.is_file() else {}


def _measures(track: Path) -> dict[str, Any]:
    """metrics.json, if the track was measured."""
    metrics = _read_if_file(track / "metrics.json")
    return {key: metrics[key] for key in ("cases", "mean", "left_out", "oracle", "fid") if key in metrics}


Scores = dict[tuple[str, str], dict[str, float]]  # by judge or "measured", and metric; by case


def _comparisons(
    tracks: Mapping[tuple[str, str], Path],
    judgements: Mapping[tuple[str, str], Sequence[Judgement]],
    measures: Mapping[tuple[str, str], Mapping[str, Any]],
    protocol: Protocol | None,
) -> list[dict[str, Any]]:
    """The paired bootstrap of every two tracks of a run, and of every two runs on one track, over the cases that both have."""
    scores: dict[tuple[str, str], Scores] = {}
    for key in tracks:
        track_scores: Scores = {}
        for judgement in judgements[key]:
            assert protocol is not None
            judged = {result.case.id: result.metrics[protocol.main] for result in judgement.cases if result.metrics is not None}
            track_scores[judgement.judge, protocol.main] = judged
        for case, row in measures[key].get("cases", {}).items():
            for name, value in row.items():
                track_scores.setdefault(("measured", name), {})[case] = value
        scores[key] = track_scores
    rows = []
    for a, b in combinations(tracks, 2):
        if a[0] != b[0] and a[1] != b[1]:
            continue
        for judge, metric in scores[a]:
            first, second = scores[a][judge, metric], scores[b].get((judge, metric), {})
            if first.keys() & second.keys():
                compared = bootstrap.compare(first, second)._asdict()
                rows.append({"a": list(a), "b": list(b), "by": judge, "metric": metric, **compared})
    return rows


def _cases(
    cases: Sequence[Case],
    tracks: Mapping[tuple[str, str], Path],
    judgements: Mapping[tuple[str, str], Sequence[Judgement]],
    measures: Mapping[tuple[str, str], Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Each case with what was painted of it, and what was said and measured of that."""
    finished = {key: read_finished(folder) for key, folder in tracks.items()}
    judged = {
        key: {judgement.judge: {result.case.id: result for result in judgement.cases} for judgement in judgements[key]} for key in tracks
    }
    rows = []
    for case in cases:
        results = []
        for key in tracks:
            if (row := finished[key].get(case.id)) is None:
                continue
            judges = {}
            for judge, cases_by_id in judged[key].items():
                result = cases_by_id[case.id]
                judges[judge] = {
                    "metrics": None if result.metrics is None else dict(result.metrics),
                    "failed": result.failed,
                    "answers": {
                        name: {
                            "text": verdict.texts[-1] if verdict.texts else None,
                            "attempts": len(verdict.texts),
                            "reason": verdict.reason,
                        }
                        for name, verdict in result.verdicts.items()
                    },
                }
            results.append({
                "run": key[0], "track": key[1], "painted_prompt": row.get("painted_prompt", case.prompt), "picture": row["pictures"][-1],
                "rounds": len(row["rounds"]) if isinstance(row.get("rounds"), list) else 1, "judges": judges,
                "measures": measures[key].get("cases", {}).get(case.id, {}),
            })  # fmt: skip
        rows.append({"id": case.id, "category": case.category, "prompt": case.prompt, "turns": list(case.turns), "results": results})
    return rows
