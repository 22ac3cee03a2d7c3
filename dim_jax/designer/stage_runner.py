"""A stage of a build whose answers a designer writes: sent by the runner, saved in a journal, read for the next stage."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from dim_jax.designer.clients import Designer
from dim_jax.designer.journal import Journal
from dim_jax.designer.limits import Limits, Price
from dim_jax.designer.responses import replace_surrogates
from dim_jax.designer.runner import Job, run, summary
from dim_jax.designer.task import Task
from dim_jax.errors import InputError, SignalError
from dim_jax.storage.jsonl import read_objects


class DesignerFactory(NamedTuple):
    """A designer, opened again for each stage, and its price."""

    open: Callable[[], Designer]
    price: Price | None = None


@dataclass
class StageRunner:
    """Runs the stages of a build; the budget of `limits` is for all of them together.

    Attributes:
        retry_failed: ask again what failed in an earlier run.
        progress: show a bar.
        tell: called with a line after each stage.
    """

    limits: Limits = field(default_factory=Limits)
    retry_failed: bool = False
    progress: bool = False
    log: Callable[[str], None] = lambda line: None

    def __post_init__(self):
        self._tokens, self._dollars = 0, 0.0

    def stage(self, path: Path, jobs: Sequence[Job], task: Task, writer: DesignerFactory) -> "Answers":
        """Send the requests that `path`, a journal, has no answers to, and return the answers of these jobs.

        Raises:
            InputError: as in `run`, or a limit ended the stage; answers are kept. SignalError: a signal ended it.
        """
        designer = writer.open()
        with Journal(path) as journal:
            report = run(
                jobs, designer, journal, self._remaining_limits(), task=task, price=writer.price,
                retry_failed=self.retry_failed, total=len(jobs), progress=self.progress,
            ) if self._affordable() else None  # fmt: skip
            tokens = journal.tokens_in, journal.tokens_out
            stopped, number = (report.stopped, report.signal) if report else ("the budget", 0)
            self.log(f"{path.name}: {summary(report, journal, writer.price)}" if report else f"{path.name}: the budget is spent")
        self._tokens += sum(tokens)
        self._dollars += writer.price.dollars(*tokens) if writer.price else 0.0
        answers = Answers.read(path, jobs, task, designer.name, tokens)
        remaining = len(jobs) - len(answers.texts) - len(answers.reasons)
        if remaining or number:
            text = (
                f"{path}: stopped by {stopped}, {remaining} of {len(jobs)} are left. Answers are kept; run the same command again, with a "
                "larger limit if it was one, to continue."
            )
            raise SignalError(text, number) if number else InputError(text)
        return answers

    def _affordable(self) -> bool:
        tokens, dollars = self.limits.budget_tokens, self.limits.budget_dollars
        return (tokens is None or tokens > self._tokens) and (dollars is None or dollars > self._dollars)

    def _remaining_limits(self) -> Limits:
        tokens, dollars = self.limits.budget_tokens, self.limits.budget_dollars
        return replace(
            self.limits,
            budget_tokens=None if tokens is None else tokens - self._tokens,
            budget_dollars=None if dollars is None else dollars - self._dollars,
        )


class Answers(NamedTuple):
    """The answers of some jobs in a journal.

    Attributes:
        texts, reasons: by id, the answer, or why there is none; a job in neither was not sent.
        tokens: in and out, of the whole journal.
    """

    texts: dict[str, str]
    reasons: dict[str, str]
    tokens: tuple[int, int]

    @classmethod
    def read(cls, path: Path, jobs: Sequence[Job], task: Task, designer: str, tokens: tuple[int, int]) -> "Answers":
        """Only of these jobs: the file may also have answers of other designers, prompts or instructions."""
        expected = {job.row["id"]: (designer, (job.task or task).version, job.instruction) for job in jobs}

        def rows_of(file: Path):
            for _, row in read_objects(file) if file.exists() else ():
                design = row["design"]
                if (design["designer"], design["prompt_version"], design["instruction"]) == expected.get(row["id"]):
                    yield row

        texts = {row["id"]: replace_surrogates(row["prompt"]) for row in rows_of(path)}
        failures = rows_of(path.with_name(f"{path.stem}.failures.jsonl"))
        reasons = {row["id"]: row["design"]["reason"] for row in failures if row["id"] not in texts}
        return cls(texts, reasons, tokens)
