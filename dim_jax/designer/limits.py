"""Limits of a run: rates, retries, budgets."""

import asyncio
import json
import math
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dim_jax.errors import InputError


@dataclass(frozen=True)
class Limits:
    """Limits of a run; None: no limit.

    Attributes:
        concurrency: requests in flight at once.
        requests_per_minute, tokens_per_minute: of the account; tokens count in requests and answers.
        budget_tokens, budget_dollars: for the whole output, including earlier runs.
        time_limit: seconds, after which no new request starts.
        tries: of one request, before it counts as failed.
        backoff, longest_backoff: seconds before the second try at most, doubled for each further one up to the longest.
        longest_wait: seconds that a server may ask to wait; if it asks for more, the run ends.

    Raises:
        InputError: a value is not positive.
    """

    concurrency: int = 8
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    budget_tokens: int | None = None
    budget_dollars: float | None = None
    time_limit: float | None = None
    tries: int = 6
    backoff: float = 1.0
    longest_backoff: float = 60.0
    longest_wait: float = 600.0

    def __post_init__(self):
        wrong = [f"{name} {value}" for name, value in vars(self).items() if value is not None and not (math.isfinite(value) and value > 0)]
        if wrong:
            raise InputError(f"Limits must be positive; these are {', '.join(wrong)}.")

    @property
    def budgeted(self) -> bool:
        """Whether there is a budget."""
        return self.budget_tokens is not None or self.budget_dollars is not None

    def backoff_seconds(self, tries: int) -> float:
        """Seconds to wait after so many tries: exponential backoff with full jitter, so that requests that failed together spread out.

        Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
        """
        return random.uniform(0.0, min(self.longest_backoff, self.backoff * 2 ** (tries - 1)))


class Price(NamedTuple):
    """Dollars for a million tokens."""

    input: float
    output: float

    def dollars(self, tokens_in: int, tokens_out: int) -> float:
        return (tokens_in * self.input + tokens_out * self.output) / 1e6

    @classmethod
    def read(cls, path: Path, designer: str) -> "Price":
        """The price of a designer in a table `{"openai:gpt-4o": {"input": 2.5, "output": 10}}`.

        Raises:
            InputError: the file cannot be read, or has no such price.
        """
        try:
            row = json.loads(path.read_text(encoding="utf-8"))[designer]
            price = cls(float(row["input"]), float(row["output"]))
            if not all(math.isfinite(dollars) and dollars >= 0 for dollars in price):
                raise ValueError("not a price")
            return price
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}). Give a table of prices.") from error
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f'{path}: no price of "{designer}". Write {{"{designer}": {{"input": 2.5, "output": 10}}}}, dollars for a million tokens.'
            ) from error


class RateLimiter:
    """At most so many units a minute, evenly spaced: each reservation gets its start time.

    Evenly, since servers that allow 600 a minute refuse a burst of 600. Unused capacity is not saved.
    """

    def __init__(self, per_minute: float | None):
        self._interval = 60 / per_minute if per_minute else 0.0
        self._next_start = 0.0

    def reserve(self, units: float) -> float:
        """When `units` may start, in the event loop's time."""
        start = max(asyncio.get_running_loop().time(), self._next_start)
        self._next_start = start + units * self._interval
        return start

    def correct(self, units: float) -> None:
        """A reservation was too small by so many units (too large, if negative)."""
        self._next_start += units * self._interval


class OverBudgetError(Exception):
    """The budget does not allow another request."""


class Budget:
    """Reserves the cost of a request before it is sent, so that the budget holds with any number in flight.

    The estimate is the largest request so far plus the longest allowed answer. `spent` returns the tokens (in, out) so far.
    """

    def __init__(self, limits: Limits, price: Price | None, spent: Callable[[], tuple[int, int]], *, question: int, answer: int):
        self._limits, self._price, self._spent = limits, price, spent
        self._question, self._answer = question, answer
        self._in_flight = 0
        self._settled = asyncio.Condition()

    def observe(self, tokens_in: int, tokens_out: int) -> None:
        """Update the estimate by the tokens of a request and its answer; some servers exceed the limit that they are sent."""
        self._question, self._answer = max(self._question, tokens_in), max(self._answer, tokens_out)

    @asynccontextmanager
    async def reserved(self) -> AsyncIterator[None]:
        """Covers a request until its answer is saved. Waits while requests in flight may cost less than reserved.

        Raises:
            OverBudgetError: nothing is in flight, and the budget still does not allow it.
        """
        async with self._settled:
            while not self._affordable():
                if not self._in_flight:
                    raise OverBudgetError
                await self._settled.wait()
            self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1
            async with self._settled:
                self._settled.notify_all()

    def _affordable(self) -> bool:
        spent_in, spent_out = self._spent()
        tokens_in = spent_in + (self._in_flight + 1) * self._question
        tokens_out = spent_out + (self._in_flight + 1) * self._answer
        tokens, dollars = self._limits.budget_tokens, self._limits.budget_dollars
        if tokens is not None and tokens_in + tokens_out > tokens:
            return False
        return dollars is None or self._price is None or self._price.dollars(tokens_in, tokens_out) <= dollars
