"""How fast to ask, how long to wait, and when to stop."""

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
    """What a run may do; None is no limit.

    Attributes:
        concurrency: calls under way at once.
        requests_per_minute, tokens_per_minute: of the account; tokens are those of question and answer.
        budget_tokens, budget_dollars: for the whole output, with what it has cost before this run.
        time_limit: seconds, after which nothing new is asked.
        tries: of one question, before it counts as failed.
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

    def wait(self, tries: int) -> float:
        """Seconds to wait after so many tries: exponential backoff with full jitter, so that those who failed together part.

        Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
        """
        return random.uniform(0.0, min(self.longest_backoff, self.backoff * 2 ** (tries - 1)))


class Price(NamedTuple):
    """Dollars for a million tokens."""

    input: float
    output: float

    def of(self, tokens_in: int, tokens_out: int) -> float:
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
    """At most so many units a minute, evenly: each booking gets the time from which it may start.

    Evenly, since servers that allow 600 a minute refuse a burst of 600. What is not used is not saved up.
    """

    def __init__(self, per_minute: float | None):
        self._interval = 60 / per_minute if per_minute else 0.0
        self._free = 0.0

    def reserve(self, units: float) -> float:
        """When `units` may start, in the event loop's time."""
        start = max(asyncio.get_running_loop().time(), self._free)
        self._free = start + units * self._interval
        return start

    def correct(self, units: float) -> None:
        """A booking was short by so many units (long, if negative)."""
        self._free += units * self._interval


class OverBudgetError(Exception):
    """Not one more question can be paid for."""


class Budget:
    """Sets aside what a question may cost before it is asked, so that the budget holds however many are under way.

    The most that a question took so far stands for what the next one will take, with the whole answer that it may have. `spent` tells
    the tokens (in, out) that are paid for.
    """

    def __init__(self, limits: Limits, price: Price | None, spent: Callable[[], tuple[int, int]], *, question: int, answer: int):
        self._limits, self._price, self._spent = limits, price, spent
        self._question, self._answer = question, answer
        self._under_way = 0
        self._settled = asyncio.Condition()

    def learn(self, tokens_in: int, tokens_out: int) -> None:
        """A question and its answer took so many tokens; some servers go beyond the limit that they are sent."""
        self._question, self._answer = max(self._question, tokens_in), max(self._answer, tokens_out)

    @asynccontextmanager
    async def reserved(self) -> AsyncIterator[None]:
        """A question, its answer, and keeping it. While others may yet come out cheaper than was set aside, it waits for them.

        Raises:
            OverBudgetError: nothing is under way, and it still is too much.
        """
        async with self._settled:
            while not self._affordable():
                if not self._under_way:
                    raise OverBudgetError
                await self._settled.wait()
            self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
            async with self._settled:
                self._settled.notify_all()

    def _affordable(self) -> bool:
        spent_in, spent_out = self._spent()
        tokens_in = spent_in + (self._under_way + 1) * self._question
        tokens_out = spent_out + (self._under_way + 1) * self._answer
        tokens, dollars = self._limits.budget_tokens, self._limits.budget_dollars
        if tokens is not None and tokens_in + tokens_out > tokens:
            return False
        return dollars is None or self._price is None or self._price.of(tokens_in, tokens_out) <= dollars
