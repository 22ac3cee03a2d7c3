"""Sends a judge questions about painted pictures, and reads its answers back.

Requests go through `designer.runner`, with its limits, budget and retries. Answers are stored unchanged in TRACK/judge/MODEL.jsonl,
unusable ones beside it in MODEL.failures.jsonl. Scores are computed from these files whenever a report is written.
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
from dim_jax.errors import InputError, check
from dim_jax.evals.benchmark import TRACKS, Case, group_by, read_finished
from dim_jax.evals.protocols import Protocol, Question
from dim_jax.storage.folders import write_errors
from dim_jax.storage.jsonl import read_objects

MAX_ATTEMPTS = 3  # of a question whose answers are refusals or have no scores, before it counts as failed
FAILURES = ".failures.jsonl"  # what the journal puts after a file's name
TOKENS_OF_AN_ANSWER = 150  # until the first have been counted


class JudgeRequest(NamedTuple):
    """A question about a case's picture; `text` is the full prompt."""

    case: Case
    question: Question
    text: str
    version: str

    @property
    def id(self) -> str:
        return f"{self.case.id}/{self.question.name}"

    @property
    def row(self) -> dict[str, str]:
        """As it is saved beside the answer."""
        return {"id": self.id, "case": self.case.id, "question": self.question.name}


@dataclass(frozen=True)
class Verdict:
    """A judge's answer to one question.

    Attributes:
        texts: every answer, in the order in which they came; the last one counts.
        scores: by name; None if there are none.
        reason: why there are none; None if the question was not sent.
    """

    texts: tuple[str, ...] = ()
    scores: Mapping[str, float] | None = None
    reason: str | None = None


@dataclass(frozen=True)
class JudgedCase:
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
    """All answers of one judge for a track.

    Attributes:
        judge: its spec, as on the command line.
        cases: the painted ones, in the benchmark's order.
        models: the number of answers by the servers' name of the model.
        tokens_in, tokens_out: paid for so far, outdated answers included.
    """

    judge: str
    cases: list[JudgedCase]
    models: Counter[str] = field(default_factory=Counter)
    tokens_in: int = 0
    tokens_out: int = 0


def judge(
    out: Path, cases: Sequence[Case], protocol: Protocol, writer: DesignerFactory, runner: StageRunner, *, max_attempts: int = MAX_ATTEMPTS
) -> None:
    """Send the questions about every painted picture of every track that have no answer yet.

    Args:
        out: the folder of the evaluation.
        cases: of the benchmark.
        protocol: what to ask.
        writer: the judge.
        runner: limits and budget, for all tracks together; it logs the estimated and the actual cost.
        max_attempts: how often a question is sent again if its answer cannot be used.

    Raises:
        InputError: nothing is painted, or as in `StageRunner.stage`; what was answered is kept. SignalError: a signal ended it.
    """
    tracks = painted_tracks(out)
    check(tracks, f"{out}: nothing is painted there. Generate pictures first (--stage generate).")
    for track in tracks:
        requests = judge_requests(out / track, cases, protocol)
        folder = out / track / "judge"
        with write_errors(folder):
            folder.mkdir(exist_ok=True)
        designer = writer.open()
        path = folder / f"{file_name(designer.name)}.jsonl"
        runner.log(f"{track}: {estimate(path, requests, designer.name, writer.price)}")
        jobs = [Job(request.question.pictures, request.text, request.row, _task(request, max_attempts)) for request in requests]
        pictures = max((len(request.question.pictures) for request in requests), default=1)
        task = Task(str, str, protocol.version, pictures)  # each job has its own; this one is for what all of them will take
        runner.stage(path, jobs, task, DesignerFactory(lambda opened=designer: opened, writer.price))


def painted_tracks(out: Path) -> list[str]:
    """The tracks in which something is painted."""
    return [track for track in TRACKS if any((out / track).glob("cases*.jsonl"))]


def file_name(judge: str) -> str:
    """The name of a judge's file, without its ending."""
    return re.sub(r"[^\w.-]+", "_", judge)


def judge_requests(track: Path, cases: Sequence[Case], protocol: Protocol) -> list[JudgeRequest]:
    """What is asked about the cases of a track that are painted; of several pictures about the last one, which stands at the end of all
    turns."""
    finished, requests = read_finished(track), []
    for case in cases:
        if row := finished.get(case.id):
            for question in protocol.questions(case, track / row["pictures"][-1]):
                version = hashlib.sha256(protocol.prompts[question.prompt].encode()).hexdigest()[:12]
                requests.append(JudgeRequest(case, question, protocol.text(question, case), version))
    return requests


def _task(request: JudgeRequest, max_attempts: int) -> Task:
    def read(answer: str) -> str:
        request.question.read(answer)
        return answer  # as it came: scores are computed from it anew

    return Task(str, read, request.version, len(request.question.pictures), max_attempts)


def estimate(path: Path, requests: Sequence[JudgeRequest], judge: str, price: Price | None) -> str:
    """How many questions are left, and what they will take, going by the answers that are there or else by size."""
    entries, keys = _entries(path), RequestKeys(judge)
    remaining = [request for request in requests if not entries.get((keys(request), request.id))]
    counts = [(row["design"]["tokens_in"], row["design"]["tokens_out"]) for rows in entries.values() for row in rows]
    counts = [pair for pair in counts if all(pair)]
    if counts:
        tokens_in, tokens_out = (len(remaining) * sum(column) / len(counts) for column in zip(*counts, strict=True))
    else:
        sizes = (TOKENS_PER_PICTURE * len(request.question.pictures) + len(request.text) // CHARS_PER_TOKEN for request in remaining)
        tokens_in, tokens_out = float(sum(sizes)), float(TOKENS_OF_AN_ANSWER * len(remaining))
    text = f"{len(remaining)} of {len(requests)} questions to ask {judge}"
    if remaining:
        text += f", about {tokens_in + tokens_out:,.0f} tokens"
        text += f", ${price.dollars(round(tokens_in), round(tokens_out)):,.2f}" if price else ""
    return text


class RequestKeys:
    """The key of a question in a judge's journal; each picture is read once, by all that share `digests`."""

    def __init__(self, judge: str, digests: dict[Path, str] | None = None):
        self._judge, self._digests = judge, {} if digests is None else digests

    def __call__(self, request: JudgeRequest) -> str:
        return request_key([self._digest(picture) for picture in request.question.pictures], request.text, self._judge, request.version)

    def _digest(self, picture: Path) -> str:
        if picture not in self._digests:
            try:
                self._digests[picture] = digest(picture)
            except InputError:
                self._digests[picture] = str(picture)  # as the runner has it
        return self._digests[picture]


def _entries(path: Path) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The rows of a journal by key and id: failures first, as they came, then the answer."""
    return group_by(_rows(path), lambda row: (row["design"]["key"], row["id"]))


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
    requests, judgements, digests = judge_requests(track, cases, protocol), [], dict[Path, str]()
    # A judge without a single answer has no file of them.
    for path in sorted({path.with_name(path.name.replace(FAILURES, ".jsonl")) for path in (track / "judge").glob("*.jsonl")}):
        entries = _entries(path)
        judges = sorted({row["design"]["designer"] for rows in entries.values() for row in rows})
        judgements += [_judgement(RequestKeys(judge, digests), judge, requests, entries, protocol) for judge in judges]
    return judgements


def _judgement(
    keys: RequestKeys, judge: str, requests: Sequence[JudgeRequest], entries: Mapping[tuple[str, str], list[dict]], protocol: Protocol
) -> Judgement:
    verdicts, judgement = dict[str, dict[str, Verdict]](), Judgement(judge, [])
    cases = {request.case.id: request.case for request in requests}
    for request in requests:
        rows = entries.get((keys(request), request.id), [])
        judgement.models.update(row["design"].get("model") or judge for row in rows[-1:])
        verdicts.setdefault(request.case.id, {})[request.question.name] = _verdict(request.question, rows)
    for key, case_verdicts in verdicts.items():
        scores = [verdict.scores for verdict in case_verdicts.values()]
        all_scores = {name: value for row in scores if row is not None for name, value in row.items()}
        judgement.cases.append(JudgedCase(cases[key], case_verdicts, None if None in scores else protocol.combine(cases[key], all_scores)))
    designs = [row["design"] for rows in entries.values() for row in rows if row["design"]["designer"] == judge]
    judgement.tokens_in, judgement.tokens_out = (sum(design[name] for design in designs) for name in ("tokens_in", "tokens_out"))
    return judgement


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
