"""A stage whose answers a designer writes: asked through the runner, kept in a journal, read back for the next stage."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from dim_jax.designer.clients import Designer
from dim_jax.designer.journal import Journal
from dim_jax.designer.limits import Limits, Price
from dim_jax.designer.responses import replaced
from dim_jax.designer.runner import Job, run, state
from dim_jax.designer.task import Task
from dim_jax.errors import InputError, SignalError
from dim_jax.storage.jsonl import objects


class DesignerFactory(NamedTuple):
    """Who writes, opened anew for each stage, and what that costs."""

    open: Callable[[], Designer]
    price: Price | None = None


@dataclass
class StageRunner:
    """How designers are asked, in all stages of a build together: the budget of `limits` is for all of them.

    Attributes:
        retry_failed: ask again what failed in an earlier run.
        progress: show a bar.
        tell: is given a line after each stage.
    """

    limits: Limits = field(default_factory=Limits)
    retry_failed: bool = False
    progress: bool = False
    tell: Callable[[str], None] = lambda line: None

    def __post_init__(self):
        self._tokens, self._dollars = 0, 0.0

    def stage(self, path: Path, jobs: Sequence[Job], task: Task, writer: DesignerFactory) -> "Answers":
        """Ask what `path`, a journal, does not hold yet, and read what it holds of these jobs.

        Raises:
            InputError: as in `run`, or a limit ended the stage; what was answered is kept. SignalError: a signal ended it.
        """
        designer = writer.open()
        with Journal(path) as journal:
            report = run(
                jobs, designer, journal, self._left(), task=task, price=writer.price,
                retry_failed=self.retry_failed, total=len(jobs), progress=self.progress,
            ) if self._affordable() else None  # fmt: skip
            tokens = journal.tokens_in, journal.tokens_out
            stopped, number = (report.stopped, report.signal) if report else ("the budget", 0)
            self.tell(f"{path.name}: {state(report, journal, writer.price)}" if report else f"{path.name}: the budget is spent")
        self._tokens += sum(tokens)
        self._dollars += writer.price.of(*tokens) if writer.price else 0.0
        answers = Answers.read(path, jobs, task, designer.name, tokens)
        left = len(jobs) - len(answers.texts) - len(answers.reasons)
        if left or number:
            text = (
                f"{path}: stopped by {stopped}, {left} of {len(jobs)} are left. What is there is kept; run the same command again, with a "
                "larger limit if it was one, to go on."
            )
            raise SignalError(text, number) if number else InputError(text)
        return answers

    def _affordable(self) -> bool:
        tokens, dollars = self.limits.budget_tokens, self.limits.budget_dollars
        return (tokens is None or tokens > self._tokens) and (dollars is None or dollars > self._dollars)

    def _left(self) -> Limits:
        tokens, dollars = self.limits.budget_tokens, self.limits.budget_dollars
        return replace(
            self.limits,
            budget_tokens=None if tokens is None else tokens - self._tokens,
            budget_dollars=None if dollars is None else dollars - self._dollars,
        )


class Answers(NamedTuple):
    """What a journal holds of some jobs.

    Attributes:
        texts, reasons: by id, what was answered, or why not; a job in neither has not been asked.
        tokens: read and written, of the whole journal.
    """

    texts: dict[str, str]
    reasons: dict[str, str]
    tokens: tuple[int, int]

    @classmethod
    def read(cls, path: Path, jobs: Sequence[Job], task: Task, designer: str, tokens: tuple[int, int]) -> "Answers":
        """Of these jobs alone: answers of another designer, to another prompt or to another instruction lie in the same file."""
        asked = {job.row["id"]: (designer, (job.task or task).version, job.instruction) for job in jobs}

        def found(file: Path):
            for _, row in objects(file) if file.exists() else ():
                design = row["design"]
                if (design["designer"], design["prompt_version"], design["instruction"]) == asked.get(row["id"]):
                    yield row

        texts = {row["id"]: replaced(row["prompt"]) for row in found(path)}
        failures = found(path.with_name(f"{path.stem}.failures.jsonl"))
        reasons = {row["id"]: row["design"]["reason"] for row in failures if row["id"] not in texts}
        return cls(texts, reasons, tokens)
