"""The tables of a report, once: as Markdown and as HTML."""

import html
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple


class ReportTable(NamedTuple):
    """A table: the first column is text, the others are numbers but where `texts` names them; notes stand below."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()


def report_tables(report: Mapping[str, Any]) -> list[ReportTable]:
    """All tables that a report has something to say in."""
    tables = [_scores(report), _judging(report), *_official(report), _comparisons(report), _agreement(report), _measured(report)]
    return [sheet for sheet in tables if sheet.rows]


def track_name(report: Mapping[str, Any], run: str, track: str) -> str:
    """A track, with the run's name where there are several."""
    return track if len(report["runs"]) < 2 else f"{run}, {track}"


def published_row(judge: Mapping[str, Any], main: str) -> dict[str, float]:
    """The means of the main metric as published rows have them: by category and subset, and overall; other metrics' overall ones."""
    row = {name: part["metrics"][main]["mean"] for name, part in judge["categories"].items() if main in part["metrics"]}
    row |= {name: part["metrics"][main]["mean"] for name, part in judge["subsets"].items() if main in part["metrics"]}
    row |= {name: row["mean"] for name, row in judge["metrics"].items() if name != main}
    return row | ({"overall": judge["metrics"][main]["mean"]} if main in judge["metrics"] else {})


def _scores(report: Mapping[str, Any]) -> ReportTable:
    """Beside published rows; columns are those of either."""
    rules = report["protocol"]
    own_rows: list[tuple[str, str, str, dict[str, float]]] = []
    for track in report["tracks"]:
        for judge, summary in track["judges"].items():
            models = ", ".join(model for model in summary["models"] if model != judge)
            who = f"{judge} ({models})" if models else judge
            own_rows.append((track_name(report, track["run"], track["track"]), who, "this run", published_row(summary, rules["main"])))
    published_rows = [(row["model"], row["judge"], row["source"], row["scores"]) for row in report["published"]] if own_rows else []
    columns = list(dict.fromkeys(name for *_, row in (*published_rows, *own_rows) for name in row if name != "overall"))
    columns += ["overall"] if any("overall" in row for *_, row in (*own_rows, *published_rows)) else []
    rows = [
        [model, *(_number(row.get(name)) for name in columns), judge, source] for model, judge, source, row in (*own_rows, *published_rows)
    ]
    notes: tuple[str, ...] = ()
    if own_rows:
        mean = {"cases": "the mean over judged cases", "categories": "the mean of the types' means"}[rules["average"]]
        notes = (
            f"The numbers are of {rules['main']}, but in columns that are named after another metric; overall is {mean}.",
            f"Protocol: {rules['source']}; wording of the questions: {rules['wording']} (version {rules['version']}).",
        )
        if rules["wording"] == "ours":
            notes += ("Published rows were judged with the makers' own wording, so small differences mean nothing.",)
    return ReportTable("Scores", ["model", *columns, "judge", "source"], rows, notes, ("judge", "source"))


def _judging(report: Mapping[str, Any]) -> ReportTable:
    rules, rows = report["protocol"], []
    for track in report["tracks"]:
        for judge, summary in track["judges"].items():
            for name, row in summary["metrics"].items():
                first = name == rules["main"]
                rows.append([
                    track_name(report, track["run"], track["track"]), judge, name, _number(row["mean"]),
                    f"{_number(row['low'])} to {_number(row['high'])}", f"{_number(row['worst'])} to {_number(row['best'])}",
                    str(summary["judged"]) if first else "", f"{summary['failed']} ({summary['failed_share']:.1%})" if first else "",
                    str(summary["not_asked"]) if first else "", f"{summary['tokens_in'] + summary['tokens_out']:,}" if first else "",
                    ("" if summary["dollars"] is None else f"${summary['dollars']:,.2f}") if first else "",
                ])  # fmt: skip
            if not summary["metrics"]:
                counts = ["0", str(summary["failed"]), str(summary["not_asked"])]
                rows.append([track_name(report, track["run"], track["track"]), judge, *[""] * 4, *counts, "", ""])
    columns = ["track", "judge", "metric", "mean", "95 % interval", "if failures were worst, best"]
    columns += ["judged", "failed", "not asked", "tokens", "cost"]
    notes = (
        "Means are over judged cases. A case has failed if a question about it got no answer with scores, however often it was asked.",
        "Intervals are of a bootstrap over cases. Tokens and cost are all that was paid for, also for answers that could not be used.",
    )
    return ReportTable("Judging", columns, rows, notes, ("judge", "metric"))


def _official(report: Mapping[str, Any]) -> list[ReportTable]:
    tables = []
    for track in report["tracks"]:
        for judge, summary in track["judges"].items():
            if official := summary.get("official"):
                columns = list(official["overall"])
                groups = {"overall": official["overall"], **official["categories"]}
                rows = [[group, *(_number(values.get(name)) for name in columns)] for group, values in groups.items()]
                title = f"As the makers' scripts count: {track_name(report, track['run'], track['track'])}, {judge}"
                notes = ("For comparison with published rows only: this arithmetic has known faults, which are kept.", *official["notes"])
                tables.append(ReportTable(title, ["", *columns], rows, notes))
    return tables


def _comparisons(report: Mapping[str, Any]) -> ReportTable:
    rows = [
        [
            track_name(report, *row["a"]), track_name(report, *row["b"]), row["by"], row["metric"], str(row["cases"]),
            _number(row["mean_a"]), _number(row["mean_b"]), f"{row['difference']:+.3g}", f"{row['low']:+.3g} to {row['high']:+.3g}",
        ]
        for row in report["comparisons"]
    ]  # fmt: skip
    columns = ["from", "to", "by", "metric", "cases", "mean of from", "mean of to", "difference", "95 % interval"]
    notes = ("Over the cases that both have, by a paired bootstrap; where the interval leaves out 0, the difference is more than chance.",)
    return ReportTable("Comparisons", columns, rows, notes, ("to", "by", "metric"))


def _agreement(report: Mapping[str, Any]) -> ReportTable:
    rows = [
        [track_name(report, agreement["run"], agreement["track"]), " and ".join(agreement["judges"]), name, str(row["cases"]),
         _number(row["pearson"]), _number(row["spearman"]), f"{row['equal']:.0%}"]
        for agreement in report["agreement"] for name, row in agreement["metrics"].items()
    ]  # fmt: skip
    columns = ["track", "judges", "metric", "cases", "Pearson", "Spearman", "equal"]
    notes = ("Over the cases that both have judged; equal is the share of equal scores.",)
    return ReportTable("Agreement of judges", columns, rows, notes, ("judges", "metric"))


def _measured(report: Mapping[str, Any]) -> ReportTable:
    names = list(dict.fromkeys(name for track in report["tracks"] for name in track["measures"].get("mean", {})))
    rows = []
    for track in report["tracks"]:
        name, measures = track_name(report, track["run"], track["track"]), track["measures"]
        parts = {name: measures.get("mean", {}), f"{name}, best round by target": measures.get("oracle", {}).get("mean", {})}
        rows += [[label, *(_number(mean.get(metric)) for metric in names)] for label, mean in parts.items() if mean]
    return ReportTable("Measured", ["track", *names], rows)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}"


def to_markdown(report: Mapping[str, Any], tables: Sequence[ReportTable]) -> str:
    """The report without its cases."""
    lines = [f"# {_cell(report['title'])}", "", describe_runs(report), ""]
    for sheet in tables:
        marks = ["---" if i == 0 or name in sheet.texts else "--:" for i, name in enumerate(sheet.columns)]
        lines += [f"## {_cell(sheet.title)}", "", _line(sheet.columns), _line(marks), *map(_line, sheet.rows), ""]
        lines += [line for note in sheet.notes for line in (_cell(note), "")]
    return "\n".join(lines)


def describe_runs(report: Mapping[str, Any]) -> str:
    """What was painted, in a sentence for each run."""
    texts = []
    for name, run in report["runs"].items():
        about = [f"{key} {run[key]}" for key in ("designer", "seed") if run.get(key) not in (None, "none")]
        about = [f"checkpoint {PurePath(str(run['checkpoint'])).name}", *about] if run.get("checkpoint") else about
        painted = max((track["painted"] for track in report["tracks"] if track["run"] == name), default=0)
        head = f"{name}: " if len(report["runs"]) > 1 else ""
        texts.append(f"{head}{painted} of {report['cases_of_the_benchmark']} cases; {', '.join(about)}.")
    return " ".join(texts)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


def to_html(sheet: ReportTable) -> str:
    """A table element with its title and notes."""

    def cells(tag: str, values: Sequence[str]) -> str:
        flags = [i == 0 or sheet.columns[i] in sheet.texts for i in range(len(values))]
        return "".join(
            f"<{tag}{'' if is_text else ' class=n'}>{html.escape(value)}</{tag}>" for value, is_text in zip(values, flags, strict=True)
        )

    rows = "".join(f"<tr>{cells('td', row)}</tr>\n" for row in sheet.rows)
    notes = "".join(f"<p class=note>{html.escape(note)}</p>\n" for note in sheet.notes)
    return (
        f"<h3>{html.escape(sheet.title)}</h3>\n<div class=scroll tabindex=0><table><thead><tr>{cells('th', sheet.columns)}</tr></thead>\n"
        f"<tbody>{rows}</tbody></table></div>\n{notes}"
    )
