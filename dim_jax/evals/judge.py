"""Asking a judge about painted pictures, and reading back what it answered.

Answers are a designer's (`designer.runner`): asked within limits and a budget, tried again, kept as they came in TRACK/judge/MODEL.jsonl,
and those that are none beside it in MODEL.failures.jsonl. Scores are computed from there, whenever a report is written.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from dim_jax.designer.clients import CHARS_PER_TOKEN, TOKENS_PER_PICTURE
from dim_jax.designer.journal import request_key
from dim_jax.designer.limits import Price
from dim_jax.designer.picture import digest
from dim_jax.designer.runner import Job
from dim_jax.designer.stage_runner import DesignerFactory, StageRunner
from dim_jax.designer.task import AnswerError, Task
from dim_jax.errors import InputError
from dim_jax.evals.benchmark import TRACKS, Case, read_finished
from dim_jax.evals.protocols import Protocol, Question
from dim_jax.storage.folders import write_errors
from dim_jax.storage.jsonl import read_objects

ASKS = 3  # of a question whose answers are refusals or have no scores, before it counts as failed
FAILURES = ".failures.jsonl"  # what the journal puts after a file's name
TOKENS_OF_AN_ANSWER = 150  # until the first have been counted


class Asked(NamedTuple):
    """A question about a case's picture as it is asked: `text` in full."""

    case: Case
    question: Question
    text: str
    version: str

    @property
    def id(self) -> str:
        return f"{self.case.id}/{self.question.name}"


@dataclass(frozen=True)
class Verdict:
    """What a judge says to one question.

    Attributes:
        texts: every answer, in the order in which they came; the last one counts.
        scores: by name; None if there are none.
        reason: why there are none; None if nobody has been asked.
    """

    texts: tuple[str, ...] = ()
    scores: Mapping[str, float] | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Judged:
    """A case: its verdicts by question, and its metrics, if all of them have scores."""

    case: Case
    verdicts: Mapping[str, Verdict]
    metrics: Mapping[str, float] | None

    @property
    def failed(self) -> bool:
        """Whether a question was asked and has no scores."""
        return any(verdict.reason is not None for verdict in self.verdicts.values())


@dataclass
class Judgement:
    """All that one judge said about a track.

    Attributes:
        judge: its spelling on the command line.
        cases: those that are painted, in the benchmark's order.
        models: how many answers come from whom, as the servers name their models.
        tokens_in, tokens_out: paid for so far, with answers that count no longer.
    """

    judge: str
    cases: list[Judged]
    models: Counter[str] = field(default_factory=Counter)
    tokens_in: int = 0
    tokens_out: int = 0


def judge(out: Path, cases: Sequence[Case], protocol: Protocol, writer: DesignerFactory, runner: StageRunner, *, asks: int = ASKS) -> None:
    """Ask about every painted picture of every track what was not answered yet.

    Args:
        out: the folder of the evaluation.
        cases: of the benchmark.
        protocol: what to ask.
        writer: the judge.
        runner: limits and budget, for all tracks together; it is told what the questions will cost about, and what they have cost.
        asks: how often a question is asked whose answer cannot be used.

    Raises:
        InputError: nothing is painted, or as in `StageRunner.stage`; what was answered is kept. SignalError: a signal ended it.
    """
    tracks = painted_tracks(out)
    if not tracks:
        raise InputError(f"{out}: nothing is painted there. Generate pictures first (--stage generate).")
    for track in tracks:
        asked = questions(out / track, cases, protocol)
        folder = out / track / "judge"
        with write_errors(folder):
            folder.mkdir(exist_ok=True)
        designer = writer.open()
        path = folder / f"{file_name(designer.name)}.jsonl"
        runner.tell(f"{track}: {estimate(path, asked, designer.name, writer.price)}")
        jobs = [Job(one.question.pictures, one.text, _row(one), _task(one, asks)) for one in asked]
        pictures = max((len(one.question.pictures) for one in asked), default=1)
        task = Task(str, str, protocol.version, pictures)  # each job has its own; this one is for what all of them will take
        runner.stage(path, jobs, task, DesignerFactory(lambda opened=designer: opened, writer.price))


def painted_tracks(out: Path) -> list[str]:
    """The tracks in which something is painted."""
    return [track for track in TRACKS if any((out / track).glob("cases*.jsonl"))]


def file_name(judge: str) -> str:
    """The name of a judge's file, without its ending."""
    return re.sub(r"[^\w.-]+", "_", judge)


def questions(track: Path, cases: Sequence[Case], protocol: Protocol) -> list[Asked]:
    """What is asked about the cases of a track that are painted; of several pictures about the last one, which stands at the end of all
    turns."""
    finished, found = read_finished(track), []
    for case in cases:
        if row := finished.get(case.id):
            for question in protocol.questions(case, track / row["pictures"][-1]):
                version = hashlib.sha256(protocol.prompts[question.prompt].encode()).hexdigest()[:12]
                found.append(Asked(case, question, protocol.text(question, case), version))
    return found


def _row(asked: Asked) -> dict[str, Any]:
    return {"id": asked.id, "case": asked.case.id, "question": asked.question.name}


def _task(asked: Asked, asks: int) -> Task:
    def read(answer: str) -> str:
        asked.question.read(answer)
        return answer  # as it came: scores are computed from it anew

    return Task(str, read, asked.version, len(asked.question.pictures), asks)


def estimate(path: Path, asked: Sequence[Asked], judge: str, price: Price | None) -> str:
    """How many questions are left, and what they will take, going by the answers that are there or else by size."""
    entries, keys = _entries(path), Keys(judge)
    left = [one for one in asked if not entries.get((keys(one), one.id))]
    counts = [(row["design"]["tokens_in"], row["design"]["tokens_out"]) for rows in entries.values() for row in rows]
    counts = [pair for pair in counts if all(pair)]
    if counts:
        tokens_in, tokens_out = (len(left) * sum(column) / len(counts) for column in zip(*counts, strict=True))
    else:
        sizes = (TOKENS_PER_PICTURE * len(one.question.pictures) + len(one.text) // CHARS_PER_TOKEN for one in left)
        tokens_in, tokens_out = float(sum(sizes)), float(TOKENS_OF_AN_ANSWER * len(left))
    text = f"{len(left)} of {len(asked)} questions to ask {judge}"
    if left:
        text += f", about {tokens_in + tokens_out:,.0f} tokens"
        text += f", ${price.dollars(round(tokens_in), round(tokens_out)):,.2f}" if price else ""
    return text


class Keys:
    """The key of a question in a judge's journal; each picture is read once, by all that share `digests`."""

    def __init__(self, judge: str, digests: dict[Path, str] | None = None):
        self._judge, self._digests = judge, {} if digests is None else digests

    def __call__(self, asked: Asked) -> str:
        return request_key([self._digest(picture) for picture in asked.question.pictures], asked.text, self._judge, asked.version)

    def _digest(self, picture: Path) -> str:
        if picture not in self._digests:
            try:
                self._digests[picture] = digest(picture)
            except InputError:
                self._digests[picture] = str(picture)  # as the runner has it
        return self._digests[picture]


def _entries(path: Path) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The rows of a journal by key and id: failures first, as they came, then the answer."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in _rows(path):
        found.setdefault((row["design"]["key"], row["id"]), []).append(row)
    return found


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    for file in (path.with_name(path.stem + FAILURES), path):
        for where, row in read_objects(file, skip_torn=True) if file.exists() else ():
            if not isinstance(row.get("id"), str) or not isinstance(row.get("design"), dict):
                raise InputError(f"{where} was not written by `dim evaluate`. Remove the line, or the file.")
            yield row


def read_judgements(track: Path, cases: Sequence[Case], protocol: Protocol) -> list[Judgement]:
    """What every judge said about the pictures that lie there now, to the questions as they stand now.

    Raises:
        InputError: a journal or cases.jsonl is damaged.
    """
    asked, found, digests = questions(track, cases, protocol), [], dict[Path, str]()
    # A judge without a single answer has no file of them.
    for path in sorted({path.with_name(path.name.replace(FAILURES, ".jsonl")) for path in (track / "judge").glob("*.jsonl")}):
        entries = _entries(path)
        judges = sorted({row["design"]["designer"] for rows in entries.values() for row in rows})
        found += [_judgement(Keys(judge, digests), judge, asked, entries, protocol) for judge in judges]
    return found


def _judgement(
    keys: Keys, judge: str, asked: Sequence[Asked], entries: Mapping[tuple[str, str], list[dict]], protocol: Protocol
) -> Judgement:
    verdicts, found = dict[str, dict[str, Verdict]](), Judgement(judge, [])
    cases = {one.case.id: one.case for one in asked}
    for one in asked:
        rows = entries.get((keys(one), one.id), [])
        found.models.update(row["design"].get("model") or judge for row in rows[-1:])
        verdicts.setdefault(one.case.id, {})[one.question.name] = _verdict(one.question, rows)
    for key, own in verdicts.items():
        scores = [verdict.scores for verdict in own.values()]
        whole = {name: value for part in scores if part is not None for name, value in part.items()}
        found.cases.append(Judged(cases[key], own, None if None in scores else protocol.combine(cases[key], whole)))
    designs = [row["design"] for rows in entries.values() for row in rows if row["design"]["designer"] == judge]
    found.tokens_in, found.tokens_out = (sum(design[name] for design in designs) for name in ("tokens_in", "tokens_out"))
    return found


def _verdict(question: Question, rows: Sequence[Mapping[str, Any]]) -> Verdict:
    texts = tuple(row["design"]["text"] if "reason" in row["design"] else row["prompt"] for row in rows)
    if not rows:
        return Verdict()
    if reason := rows[-1]["design"].get("reason"):
        return Verdict(texts, None, reason)
    try:
        return Verdict(texts, question.read(texts[-1]))
    except AnswerError as error:
        return Verdict(texts, None, str(error))
