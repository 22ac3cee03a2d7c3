"""Sends many requests to one designer: concurrently, with rate limits and retries, each answer saved at once."""

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
from dim_jax.designer.clients import TOKENS_PER_PICTURE, Designer, Request, Response, TransientError
from dim_jax.designer.journal import Journal, request_key
from dim_jax.designer.limits import Limits, Price
from dim_jax.designer.picture import digest, encode_picture
from dim_jax.designer.rates import Budget, OverBudgetError, RateLimiter
from dim_jax.designer.responses import short_message
from dim_jax.designer.task import AnswerError, Task
from dim_jax.errors import InputError, check, check_unicode

MAX_UNANSWERED = 10  # failed requests in a row, with all retries, after which the server counts as down
PATIENCE = 30.0  # seconds for requests in flight when a signal ends the run
NOTICE_AFTER, NOTICE_EVERY = 2.0, 60.0  # seconds: shortest wait that the console shows, and the time between such lines
# Estimates until the first answers have been counted, without the pictures.
TOKENS_PER_TEXT, TOKENS_PER_ANSWER = 400, 400


@dataclass(frozen=True)
class Job:
    """One request, such as an edit to write a blueprint for. `row` is saved beside the answer; it has an `id`. `task`: instead of the
    run's."""

    pictures: tuple[Path, ...]
    instruction: str
    row: dict[str, Any]
    task: Task | None = None


@dataclass
class Report:
    """Counts of a run.

    Attributes:
        answered, failed: rows of this run.
        skipped: rows that were answered, or had failed, before.
        calls: requests sent; each try counts.
        tokens: of this run's requests and answers.
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
    """No new request may start."""


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
    """Get the answer to every job that is not in the journal; `task` makes the requests, by default for blueprints.

    Jobs are read when they are needed, and saved in the order of their answers. A request that occurs twice is sent once.
    At a limit, on Ctrl-C or a SIGTERM, no new request starts, answers in flight are saved, and the run ends; another run continues
    from there. After a signal it waits for half a minute at most. Standard error shows how long a server asks to wait.

    Raises:
        InputError: every request fails (a wrong key, no such model, no credit, no server), the server asks to wait for too long, or
            does not support a token limit where there is a budget; the journal cannot be written; or a budget in dollars has no
            price. Earlier answers are kept.
    """
    limits = limits or Limits()
    check(limits.budget_dollars is None or price is not None, "A budget in dollars needs a table of prices (--prices).")
    costs = TextColumn("{task.description}", markup=False)
    columns = TextColumn("asking"), BarColumn(), MofNCompleteColumn(), costs, TimeElapsedColumn(), TimeRemainingColumn()
    console = open_console()
    with Progress(*columns, console=console, disable=not progress, transient=True) as bar:
        line = bar.add_task("", total=total)

        def show(report: Report) -> None:
            finished = report.answered + report.failed + report.skipped
            bar.update(line, completed=finished, description=summary(report, journal, price, None if total is None else total - finished))

        def log(text: str) -> None:
            console.out(text, highlight=False)

        return asyncio.run(_run(jobs, designer, journal, limits, task, price, retry_failed, show, log))


def summary(report: Report, journal: Journal, price: Price | None, remaining: int | None = None) -> str:
    """Counts of rows, and the cost of the whole output so far; with `remaining` rows, also the expected total cost."""
    tokens = journal.tokens_in + journal.tokens_out
    dollars = None if price is None else price.dollars(journal.tokens_in, journal.tokens_out)
    text = f"{report.answered} answered, {report.failed} failed, {report.skipped} skipped; {tokens:,} tokens"
    text += "" if dollars is None else f", ${dollars:,.4f}"
    finished = report.answered + report.failed
    if remaining is not None and finished and report.tokens:
        total = tokens + report.tokens / finished * remaining
        text += f"; in all about {total:,.0f} tokens" + ("" if dollars is None else f", ${dollars * total / tokens:,.4f}")
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
    log: Callable[[str], None],
) -> Report:
    loop, report, source, errors = asyncio.get_running_loop(), Report(), iter(jobs), list[InputError]()
    request_tokens = TOKENS_PER_PICTURE * task.pictures + TOKENS_PER_TEXT
    requester = _Requester(designer, limits, report, request_tokens + TOKENS_PER_ANSWER, log)
    budget = Budget(
        limits,
        price,
        lambda: (journal.tokens_in, journal.tokens_out),
        request_tokens=request_tokens if designer.max_tokens else 0,
        answer_tokens=designer.max_tokens,
    )
    in_progress: dict[str, asyncio.Event] = {}

    async def save(job: Job, key: str, answer: Response, *, final: bool = True) -> bool:
        job_task, text, reason = job.task or task, None, answer.failure
        if reason is None:
            try:
                text = job_task.parse(answer.text)
            except AnswerError as error:
                reason = str(error)
        usage = {key: value for key, value in asdict(answer).items() if key.startswith("tokens") or (key in ("dropped", "model") and value)}
        failure = {} if reason is None else {"reason": reason, "text": answer.text}
        request = {"key": key, "designer": designer.name, "prompt_version": job_task.version, "instruction": job.instruction}
        await loop.run_in_executor(writer, journal.add, job.row, text, request | usage | failure)
        report.tokens += answer.tokens_in + answer.tokens_out
        budget.observe(answer.tokens_in, answer.tokens_out)
        if text is not None:
            report.answered += 1
        elif final:
            report.failed += 1
            report.example = report.example or short_message(f'"{job.row["id"]}": {reason}')
        return text is not None

    async def run_job(job: Job) -> None:
        row_id, damage, job_task = job.row["id"], None, job.task or task
        try:
            check_unicode(row_id, "the id")
            check_unicode(job.instruction, "the instruction")
            digests = [await loop.run_in_executor(readers, digest, picture) for picture in job.pictures]
        except InputError as error:
            digests, damage = [str(picture) for picture in job.pictures], str(error)
        key = request_key(digests, job.instruction, designer.name, job_task.version)
        while event := in_progress.get(key):
            await event.wait()
        given_up = journal.attempts(key) >= job_task.max_attempts and not retry_failed
        if journal.has_answer(key, row_id) or (given_up and journal.has_failed(key, row_id)):
            report.skipped += 1
            return
        in_progress[key] = asyncio.Event()
        try:
            answer, reason = journal.answer(key), damage or (journal.reason(key) if given_up else None)
            if answer is not None or reason:
                await save(job, key, Response(answer or "", None if answer is not None else reason))
            else:
                await send(job, key, job_task)
        finally:
            in_progress.pop(key).set()

    async def send(job: Job, key: str, job_task: Task) -> None:
        try:
            pictures = tuple([await loop.run_in_executor(readers, encode_picture, picture) for picture in job.pictures])
            text = job_task.prompt(job.instruction)
        except InputError as error:
            await save(job, key, Response("", str(error)))
            return
        first_attempt = journal.attempts(key)
        last_attempt = (first_attempt if retry_failed else 0) + job_task.max_attempts
        for attempt in range(first_attempt, last_attempt):
            request = Request(job.row["id"], job.instruction, text, pictures, limits.budgeted, attempt % job_task.max_attempts)
            async with budget.reserved():
                if await save(job, key, await requester.answer(request), final=attempt + 1 == last_attempt):
                    return

    async def work() -> None:
        try:
            for job in source:
                await run_job(job)
                show(report)
                requester.check()
        except _StoppedError:
            pass
        except OverBudgetError:
            requester.stop("the budget")
        except InputError as error:
            errors.append(error)
            requester.stop("an error")

    timer = loop.call_later(limits.time_limit, requester.stop, "the time limit") if limits.time_limit else None
    patience = asyncio.timeout(None)

    def on_signal(number: signal.Signals) -> None:
        report.signal = report.signal or int(number)
        requester.stop("Ctrl-C" if number == signal.SIGINT else number.name)
        patience.reschedule(loop.time() + PATIENCE)
        if sys.stderr.isatty():
            log(f"Ending: requests in flight have {PATIENCE:g} s. Press Ctrl-C again to end at once.")

    # Two threads decode pictures; one writes, so that lines do not mix and a slow disk blocks no request.
    with ThreadPoolExecutor(2) as readers, ThreadPoolExecutor(1) as writer, suppress(TimeoutError):
        try:
            async with patience:
                with _signals(loop, on_signal):
                    await asyncio.gather(*(work() for _ in range(limits.concurrency)))
        finally:
            await designer.close()
    if timer:
        timer.cancel()
    if errors:
        raise errors[0]
    return report


class _Requester:
    """Sends one request with retries, within the limits of time and of the server."""

    def __init__(self, designer: Designer, limits: Limits, report: Report, expected: int, log: Callable[[str], None]):
        """`expected`: tokens of a request and its answer until the first are counted; `tell` shows a line."""
        self._designer, self._limits, self._report = designer, limits, report
        self._requests, self._tokens = RateLimiter(limits.requests_per_minute), RateLimiter(limits.tokens_per_minute)
        self._expected = float(expected)
        self._not_before = self._next_notice = 0.0
        self._reached, self._log = False, log
        self._stopped = asyncio.Event()
        self._unanswered = 0

    def stop(self, reason: str) -> None:
        """No new request starts from now on."""
        self._report.stopped = self._report.stopped or reason
        self._stopped.set()

    def check(self) -> None:
        if self._stopped.is_set():
            raise _StoppedError

    async def answer(self, request: Request) -> Response:
        """The answer; if every try failed, a failure with the last reason.

        Raises:
            _StoppedError: the run was stopped before the request or a retry.
            InputError: the designer answers no request at all.
        """
        limits, reason = self._limits, ""
        for tries in range(1, limits.tries + 1):
            await self._sleep_until(max(self._requests.reserve(1.0), self._tokens.reserve(self._expected)))
            expected, self._report.calls = self._expected, self._report.calls + 1
            try:
                answer = await self._designer.complete(request)
            except TransientError as error:
                reason, now = str(error), asyncio.get_running_loop().time()
                self._reached = self._reached or not error.unreachable
                if error.retry_after:
                    self._pause(error.retry_after, now, reason)
                if tries < limits.tries:
                    await self._sleep_until(now + limits.backoff_seconds(tries))
                continue
            tokens = answer.tokens_in + answer.tokens_out
            self._tokens.correct(tokens - expected)
            self._expected += (tokens - self._expected) / 8  # a running mean
            self._unanswered, self._reached = 0, True
            return answer
        check(self._reached, f"{self._designer.name}: {reason}. No request was sent in {limits.tries} tries.")
        self._unanswered += 1
        if self._unanswered >= MAX_UNANSWERED:
            raise InputError(
                f"{self._designer.name}: {MAX_UNANSWERED} requests in a row got no answer in {limits.tries} tries each, at last: {reason}. "
                "When the server works again, run the same command, with --retry-failed where it has that."
            )
        return Response("", f"no answer in {limits.tries} tries, at last: {reason}")

    def _pause(self, wait: float, now: float, reason: str) -> None:
        """Pause all requests: the server's wait is for the account. Raises InputError if it is longer than `longest_wait`."""
        try:
            until = f"until {datetime.now().astimezone() + timedelta(seconds=wait):%Y-%m-%d %H:%M:%S %Z}"
        except OverflowError:
            until = "for ever"
        if wait > self._limits.longest_wait:
            raise InputError(
                f"{self._designer.name}: {reason}. It asks to wait {until}, more than {self._limits.longest_wait:g} s (--longest-wait). "
                "Finished answers are kept; run the same command again then."
            )
        self._not_before = max(self._not_before, now + wait)
        if wait >= NOTICE_AFTER and now + wait > self._next_notice:
            self._next_notice = now + wait + NOTICE_EVERY
            self._log(f"{self._designer.name}: waiting {until}, as the server asks: {reason}")

    async def _sleep_until(self, at: float) -> None:
        """Wait until a time and until the end of a pause; a stop ends it."""
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
    """The first Ctrl-C or SIGTERM stops the run cleanly; a second one, and any after the run, goes to the earlier handler."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in handlers.items():
            loop.remove_signal_handler(number)  # which installs Python's default
            signal.signal(number, handler)

    def on_signal(number: signal.Signals) -> None:
        stop(number)
        restore()

    for number in handlers:
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield
    finally:
        restore()
