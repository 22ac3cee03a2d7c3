"""The tables of a report, once: as Markdown and as HTML."""

import html
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple


class Sheet(NamedTuple):
    """A table: the first column is text, the others are numbers but where `texts` names them; notes stand below."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()


def sheets(report: Mapping[str, Any]) -> list[Sheet]:
    """All tables that a report has something to say in."""
    found = [_scores(report), _judging(report), *_official(report), _comparisons(report), _agreement(report), _measured(report)]
    return [sheet for sheet in found if sheet.rows]


def name_of(report: Mapping[str, Any], run: str, track: str) -> str:
    """A track, with the run's name where there are several."""
    return track if len(report["runs"]) < 2 else f"{run}, {track}"


def row_of(judge: Mapping[str, Any], main: str) -> dict[str, float]:
    """The means of the main metric as published rows have them: by category and subset, and overall; other metrics' overall ones."""
    found = {name: part["metrics"][main]["mean"] for name, part in judge["categories"].items() if main in part["metrics"]}
    found |= {name: part["metrics"][main]["mean"] for name, part in judge["subsets"].items() if main in part["metrics"]}
    found |= {name: row["mean"] for name, row in judge["metrics"].items() if name != main}
    return found | ({"overall": judge["metrics"][main]["mean"]} if main in judge["metrics"] else {})


def _scores(report: Mapping[str, Any]) -> Sheet:
    """Beside published rows; columns are those of either."""
    rules = report["protocol"]
    own: list[tuple[str, str, str, dict[str, float]]] = []
    for track in report["tracks"]:
        for judge, found in track["judges"].items():
            models = ", ".join(model for model in found["models"] if model != judge)
            who = f"{judge} ({models})" if models else judge
            own.append((name_of(report, track["run"], track["track"]), who, "this run", row_of(found, rules["main"])))
    theirs = [(row["model"], row["judge"], row["source"], row["scores"]) for row in report["published"]] if own else []
    columns = list(dict.fromkeys(name for *_, row in (*theirs, *own) for name in row if name != "overall"))
    columns += ["overall"] if any("overall" in row for *_, row in (*own, *theirs)) else []
    rows = [[model, *(_number(row.get(name)) for name in columns), judge, source] for model, judge, source, row in (*own, *theirs)]
    notes: tuple[str, ...] = ()
    if own:
        mean = {"cases": "the mean over judged cases", "categories": "the mean of the types' means"}[rules["average"]]
        notes = (
            f"The numbers are of {rules['main']}, but in columns that are named after another metric; overall is {mean}.",
            f"Protocol: {rules['source']}; wording of the questions: {rules['wording']} (version {rules['version']}).",
        )
        if rules["wording"] == "ours":
            notes += ("Published rows were judged with the makers' own wording, so small differences mean nothing.",)
    return Sheet("Scores", ["model", *columns, "judge", "source"], rows, notes, ("judge", "source"))


def _judging(report: Mapping[str, Any]) -> Sheet:
    rules, rows = report["protocol"], []
    for track in report["tracks"]:
        for judge, found in track["judges"].items():
            for name, row in found["metrics"].items():
                first = name == rules["main"]
                rows.append([
                    name_of(report, track["run"], track["track"]), judge, name, _number(row["mean"]),
                    f"{_number(row['low'])} to {_number(row['high'])}", f"{_number(row['worst'])} to {_number(row['best'])}",
                    str(found["judged"]) if first else "", f"{found['failed']} ({found['failed_share']:.1%})" if first else "",
                    str(found["not_asked"]) if first else "", f"{found['tokens_in'] + found['tokens_out']:,}" if first else "",
                    ("" if found["dollars"] is None else f"${found['dollars']:,.2f}") if first else "",
                ])  # fmt: skip
            if not found["metrics"]:
                counts = ["0", str(found["failed"]), str(found["not_asked"])]
                rows.append([name_of(report, track["run"], track["track"]), judge, *[""] * 4, *counts, "", ""])
    columns = ["track", "judge", "metric", "mean", "95 % interval", "if failures were worst, best"]
    columns += ["judged", "failed", "not asked", "tokens", "cost"]
    notes = (
        "Means are over judged cases. A case has failed if a question about it got no answer with scores, however often it was asked.",
        "Intervals are of a bootstrap over cases. Tokens and cost are all that was paid for, also for answers that could not be used.",
    )
    return Sheet("Judging", columns, rows, notes, ("judge", "metric"))


def _official(report: Mapping[str, Any]) -> list[Sheet]:
    found = []
    for track in report["tracks"]:
        for judge, own in track["judges"].items():
            if official := own.get("official"):
                columns = list(official["overall"])
                groups = {"overall": official["overall"], **official["categories"]}
                rows = [[group, *(_number(values.get(name)) for name in columns)] for group, values in groups.items()]
                title = f"As the makers' scripts count: {name_of(report, track['run'], track['track'])}, {judge}"
                notes = ("For comparison with published rows only: this arithmetic has known faults, which are kept.", *official["notes"])
                found.append(Sheet(title, ["", *columns], rows, notes))
    return found


def _comparisons(report: Mapping[str, Any]) -> Sheet:
    rows = [
        [
            name_of(report, *row["a"]), name_of(report, *row["b"]), row["by"], row["metric"], str(row["cases"]),
            _number(row["mean_a"]), _number(row["mean_b"]), f"{row['difference']:+.3g}", f"{row['low']:+.3g} to {row['high']:+.3g}",
        ]
        for row in report["comparisons"]
    ]  # fmt: skip
    columns = ["from", "to", "by", "metric", "cases", "mean of from", "mean of to", "difference", "95 % interval"]
    notes = ("Over the cases that both have, by a paired bootstrap; where the interval leaves out 0, the difference is more than chance.",)
    return Sheet("Comparisons", columns, rows, notes, ("to", "by", "metric"))


def _agreement(report: Mapping[str, Any]) -> Sheet:
    rows = [
        [name_of(report, found["run"], found["track"]), " and ".join(found["judges"]), name, str(row["cases"]), _number(row["pearson"]),
         _number(row["spearman"]), f"{row['equal']:.0%}"]
        for found in report["agreement"] for name, row in found["metrics"].items()
    ]  # fmt: skip
    columns = ["track", "judges", "metric", "cases", "Pearson", "Spearman", "equal"]
    notes = ("Over the cases that both have judged; equal is the share of equal scores.",)
    return Sheet("Agreement of judges", columns, rows, notes, ("judges", "metric"))


def _measured(report: Mapping[str, Any]) -> Sheet:
    names = list(dict.fromkeys(name for track in report["tracks"] for name in track["measures"].get("mean", {})))
    rows = []
    for track in report["tracks"]:
        name, found = name_of(report, track["run"], track["track"]), track["measures"]
        parts = {name: found.get("mean", {}), f"{name}, best round by target": found.get("oracle", {}).get("mean", {})}
        rows += [[label, *(_number(mean.get(one)) for one in names)] for label, mean in parts.items() if mean]
    return Sheet("Measured", ["track", *names], rows)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}"


def markdown(report: Mapping[str, Any], tables: Sequence[Sheet]) -> str:
    """The report without its cases."""
    lines = [f"# {_cell(report['title'])}", "", about(report), ""]
    for sheet in tables:
        marks = ["---" if i == 0 or name in sheet.texts else "--:" for i, name in enumerate(sheet.columns)]
        lines += [f"## {_cell(sheet.title)}", "", _line(sheet.columns), _line(marks), *map(_line, sheet.rows), ""]
        lines += [line for note in sheet.notes for line in (_cell(note), "")]
    return "\n".join(lines)


def about(report: Mapping[str, Any]) -> str:
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


def as_html(sheet: Sheet) -> str:
    """A table element with its title and notes."""

    def cells(tag: str, values: Sequence[str]) -> str:
        text = [i == 0 or sheet.columns[i] in sheet.texts for i in range(len(values))]
        return "".join(f"<{tag}{'' if own else ' class=n'}>{html.escape(value)}</{tag}>" for value, own in zip(values, text, strict=True))

    rows = "".join(f"<tr>{cells('td', row)}</tr>\n" for row in sheet.rows)
    notes = "".join(f"<p class=note>{html.escape(note)}</p>\n" for note in sheet.notes)
    return (
        f"<h3>{html.escape(sheet.title)}</h3>\n<div class=scroll tabindex=0><table><thead><tr>{cells('th', sheet.columns)}</tr></thead>\n"
        f"<tbody>{rows}</tbody></table></div>\n{notes}"
    )
