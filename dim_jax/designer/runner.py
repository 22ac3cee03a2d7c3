"""Many questions to one designer: at most so many at once and a minute, tried again where it helps, kept as soon as they are answered."""

import asyncio
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dim_jax.console import open_console
from dim_jax.designer.blueprint import BLUEPRINT
from dim_jax.designer.clients import TOKENS_OF_A_PICTURE, Designer, Request, Response, TransientError
from dim_jax.designer.journal import Journal, key_of
from dim_jax.designer.limits import Budget, Limits, OverBudgetError, Price, RateLimiter
from dim_jax.designer.picture import digest, sent
from dim_jax.designer.responses import words
from dim_jax.designer.task import AnswerError, Task
from dim_jax.errors import InputError, check_unicode

HOPELESS = 10  # questions in a row that got no answer however often they were asked: the server is gone
PATIENCE = 30.0  # seconds for calls under way when the run is asked to end
TOLD, TOLD_AGAIN = 2.0, 60.0  # seconds that a server asks to wait: from which on, and how often, the console says so
# Until the first answers have been counted, beside those of the pictures.
TOKENS_OF_A_TEXT, TOKENS_OF_AN_ANSWER = 400, 400


@dataclass(frozen=True)
class Job:
    """A question, such as an edit to write a blueprint for. `row` is what is kept of it beside the answer; it holds `id`. `task` is its
    own, if it has another one than the run."""

    pictures: tuple[Path, ...]
    instruction: str
    row: dict[str, Any]
    task: Task | None = None


@dataclass
class Report:
    """What a run did.

    Attributes:
        answered, failed: rows of this run.
        skipped: rows that were answered, or had failed, before.
        calls: requests sent; each try of a question counts.
        tokens: of this run's questions and answers.
        stopped: why the run ended before its last row, if it did.
        signal: the number of the signal that ended it, or 0.
        example: the first row of this run that failed, and why.
    """

    answered: int = 0
    failed: int = 0
    skipped: int = 0
    calls: int = 0
    tokens: int = 0
    stopped: str | None = None
    signal: int = 0
    example: str = ""


class _StoppedError(Exception):
    """Nothing new may be asked."""


def run(
    jobs: Iterable[Job],
    designer: Designer,
    journal: Journal,
    limits: Limits | None = None,
    *,
    task: Task = BLUEPRINT,
    price: Price | None = None,
    retry_failed: bool = False,
    total: int | None = None,
    progress: bool = False,
) -> Report:
    """Ask for the answer to every job that the journal does not hold; `task` says what is asked, by default for blueprints.

    Jobs are taken one by one as they are needed, and kept in the order of their answers. A question that occurs twice is asked once.
    When a limit is reached, on Ctrl-C or a SIGTERM, nothing new is asked, what is under way is waited for and kept, and the run ends;
    another one goes on from there. After a signal it waits for half a minute at most. Standard error says how long a server asks to wait.

    Raises:
        InputError: the designer can answer nothing (a wrong key, no such model, no credit, no server), asks to wait for too long, or
            takes no limit to an answer where there is a budget; the journal cannot be written; or a budget in dollars comes without a
            price. What was answered before is kept.
    """
    limits = limits or Limits()
    if limits.budget_dollars is not None and price is None:
        raise InputError("A budget in dollars needs a table of prices (--prices).")
    costs = TextColumn("{task.description}", markup=False)
    columns = TextColumn("asking"), BarColumn(), MofNCompleteColumn(), costs, TimeElapsedColumn(), TimeRemainingColumn()
    console = open_console()
    with Progress(*columns, console=console, disable=not progress, transient=True) as bar:
        line = bar.add_task("", total=total)

        def show(report: Report) -> None:
            done = report.answered + report.failed + report.skipped
            bar.update(line, completed=done, description=state(report, journal, price, None if total is None else total - done))

        def tell(text: str) -> None:
            console.out(text, highlight=False)

        return asyncio.run(_run(jobs, designer, journal, limits, task, price, retry_failed, show, tell))


def state(report: Report, journal: Journal, price: Price | None, left: int | None = None) -> str:
    """Rows, and what the whole output has cost so far; with `left` rows to come, what it will have cost at its end."""
    tokens = journal.tokens_in + journal.tokens_out
    dollars = None if price is None else price.of(journal.tokens_in, journal.tokens_out)
    text = f"{report.answered} answered, {report.failed} failed, {report.skipped} skipped; {tokens:,} tokens"
    text += "" if dollars is None else f", ${dollars:,.4f}"
    done = report.answered + report.failed
    if left is not None and done and report.tokens:
        more = tokens + report.tokens / done * left
        text += f"; in all about {more:,.0f} tokens" + ("" if dollars is None else f", ${dollars * more / tokens:,.4f}")
    return text


async def _run(
    jobs: Iterable[Job],
    designer: Designer,
    journal: Journal,
    limits: Limits,
    task: Task,
    price: Price | None,
    retry_failed: bool,
    show: Callable[[Report], None],
    tell: Callable[[str], None],
) -> Report:
    loop, report, source, errors = asyncio.get_running_loop(), Report(), iter(jobs), list[InputError]()
    question = TOKENS_OF_A_PICTURE * task.pictures + TOKENS_OF_A_TEXT
    asker = _Asker(designer, limits, report, question + TOKENS_OF_AN_ANSWER, tell)
    budget = Budget(
        limits,
        price,
        lambda: (journal.tokens_in, journal.tokens_out),
        question=question if designer.max_tokens else 0,
        answer=designer.max_tokens,
    )
    asking: dict[str, asyncio.Event] = {}

    async def keep(job: Job, key: str, answer: Response, *, final: bool = True) -> bool:
        own, text, reason = job.task or task, None, answer.trouble
        if reason is None:
            try:
                text = own.read(answer.text)
            except AnswerError as error:
                reason = str(error)
        used = {key: value for key, value in asdict(answer).items() if key.startswith("tokens") or (key in ("dropped", "model") and value)}
        why = {} if reason is None else {"reason": reason, "text": answer.text}
        about = {"key": key, "designer": designer.name, "prompt_version": own.version, "instruction": job.instruction}
        await loop.run_in_executor(writer, journal.add, job.row, text, about | used | why)
        report.tokens += answer.tokens_in + answer.tokens_out
        budget.learn(answer.tokens_in, answer.tokens_out)
        if text is not None:
            report.answered += 1
        elif final:
            report.failed += 1
            report.example = report.example or words(f'"{job.row["id"]}": {reason}')
        return text is not None

    async def one(job: Job) -> None:
        row_id, damage, own = job.row["id"], None, job.task or task
        try:
            check_unicode(row_id, "the id")
            check_unicode(job.instruction, "the instruction")
            found = [await loop.run_in_executor(readers, digest, picture) for picture in job.pictures]
        except InputError as error:
            found, damage = [str(picture) for picture in job.pictures], str(error)
        key = key_of(found, job.instruction, designer.name, own.version)
        while other := asking.get(key):
            await other.wait()
        given_up = journal.attempts(key) >= own.asks and not retry_failed
        if journal.answered(key, row_id) or (given_up and journal.failed(key, row_id)):
            report.skipped += 1
            return
        asking[key] = asyncio.Event()
        try:
            known, reason = journal.answer(key), damage or (journal.reason(key) if given_up else None)
            if known is not None or reason:
                await keep(job, key, Response(known or "", None if known is not None else reason))
            else:
                await ask(job, key, own)
        finally:
            asking.pop(key).set()

    async def ask(job: Job, key: str, own: Task) -> None:
        try:
            pictures = tuple([await loop.run_in_executor(readers, sent, picture) for picture in job.pictures])
            text = own.ask(job.instruction)
        except InputError as error:
            await keep(job, key, Response("", str(error)))
            return
        first = journal.attempts(key)
        last = (first if retry_failed else 0) + own.asks
        for attempt in range(first, last):
            question = Request(job.row["id"], job.instruction, text, pictures, limits.budgeted, attempt % own.asks)
            async with budget.reserved():
                if await keep(job, key, await asker.answer(question), final=attempt + 1 == last):
                    return

    async def work() -> None:
        try:
            for job in source:
                await one(job)
                show(report)
                asker.check()
        except _StoppedError:
            pass
        except OverBudgetError:
            asker.stop("the budget")
        except InputError as error:
            errors.append(error)
            asker.stop("an error")

    timer = loop.call_later(limits.time_limit, asker.stop, "the time limit") if limits.time_limit else None
    patience = asyncio.timeout(None)

    def hear(number: signal.Signals) -> None:
        report.signal = report.signal or int(number)
        asker.stop("Ctrl-C" if number == signal.SIGINT else number.name)
        patience.reschedule(loop.time() + PATIENCE)
        if sys.stderr.isatty():
            tell(f"Ending: calls under way have {PATIENCE:g} s. Press Ctrl-C again to end at once.")

    # Two threads decode pictures; one writes, so that lines do not mix and a slow disk holds up nobody.
    with ThreadPoolExecutor(2) as readers, ThreadPoolExecutor(1) as writer, suppress(TimeoutError):
        try:
            async with patience:
                with _signals(loop, hear):
                    await asyncio.gather(*(work() for _ in range(limits.concurrency)))
        finally:
            await designer.close()
    if timer:
        timer.cancel()
    if errors:
        raise errors[0]
    return report


class _Asker:
    """Asks one question as often as it takes, within the limits of time and of the server."""

    def __init__(self, designer: Designer, limits: Limits, report: Report, expected: int, tell: Callable[[str], None]):
        """`expected` tokens of a question and its answer, until the first were counted; `tell` shows a line."""
        self._designer, self._limits, self._report = designer, limits, report
        self._requests, self._tokens = RateLimiter(limits.requests_per_minute), RateLimiter(limits.tokens_per_minute)
        self._expected = float(expected)
        self._not_before = self._told_until = 0.0
        self._reached, self._tell = False, tell
        self._stopped = asyncio.Event()
        self._hopeless = 0

    def stop(self, why: str) -> None:
        """Nothing new is asked from now on."""
        self._report.stopped = self._report.stopped or why
        self._stopped.set()

    def check(self) -> None:
        if self._stopped.is_set():
            raise _StoppedError

    async def answer(self, question: Request) -> Response:
        """The answer; when every try failed, its trouble is the last reason.

        Raises:
            _StoppedError: it was not asked, or is not asked again.
            InputError: the designer answers nothing at all.
        """
        limits, reason = self._limits, ""
        for tries in range(1, limits.tries + 1):
            await self._until(max(self._requests.reserve(1.0), self._tokens.reserve(self._expected)))
            expected, self._report.calls = self._expected, self._report.calls + 1
            try:
                answer = await self._designer.complete(question)
            except TransientError as error:
                reason, now = str(error), asyncio.get_running_loop().time()
                self._reached = self._reached or not error.unreached
                if error.retry_after:
                    self._hold(error.retry_after, now, reason)
                if tries < limits.tries:
                    await self._until(now + limits.wait(tries))
                continue
            taken = answer.tokens_in + answer.tokens_out
            self._tokens.correct(taken - expected)
            self._expected += (taken - self._expected) / 8  # a running mean
            self._hopeless, self._reached = 0, True
            return answer
        if not self._reached:
            raise InputError(f"{self._designer.name}: {reason}. Nothing was asked in {limits.tries} tries.")
        self._hopeless += 1
        if self._hopeless >= HOPELESS:
            raise InputError(
                f"{self._designer.name}: {HOPELESS} questions in a row got no answer in {limits.tries} tries each, at last: {reason}. "
                "When the server is well again, run the same command with --retry-failed."
            )
        return Response("", f"no answer in {limits.tries} tries, at last: {reason}")

    def _hold(self, wait: float, now: float, reason: str) -> None:
        """What the server asks for holds for the account, hence for all.

        Raises:
            InputError: it is more than anybody wants to wait.
        """
        try:
            until = f"until {datetime.now().astimezone() + timedelta(seconds=wait):%Y-%m-%d %H:%M:%S %Z}"
        except OverflowError:
            until = "for ever"
        if wait > self._limits.longest_wait:
            raise InputError(
                f"{self._designer.name}: {reason}. It asks to wait {until}, more than {self._limits.longest_wait:g} s (--longest-wait). "
                "What is there is kept; run the same command again then."
            )
        self._not_before = max(self._not_before, now + wait)
        if wait >= TOLD and now + wait > self._told_until:
            self._told_until = now + wait + TOLD_AGAIN
            self._tell(f"{self._designer.name}: waiting {until}, as the server asks: {reason}")

    async def _until(self, at: float) -> None:
        """Wait until a time, and for as long as the server asked all to wait; a stop ends it."""
        loop = asyncio.get_running_loop()
        self.check()
        while (delay := max(at, self._not_before) - loop.time()) > 0:
            try:
                await asyncio.wait_for(self._stopped.wait(), delay)
            except TimeoutError:
                continue
            raise _StoppedError


@contextmanager
def _signals(loop: asyncio.AbstractEventLoop, stop: Callable[[signal.Signals], None]) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM stops the run cleanly; a second one, and any after the run, is heard by whoever heard it before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            loop.remove_signal_handler(number)  # which puts Python's own in its place
            signal.signal(number, handler)

    def hear(number: signal.Signals) -> None:
        stop(number)
        restore()

    for number in before:
        loop.add_signal_handler(number, hear, number)
    try:
        yield
    finally:
        restore()
