"""Keeps the limits of a run: the rate of requests, and the budget of those in flight."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from dim_jax.designer.limits import Limits, Price


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

    def __init__(
        self, limits: Limits, price: Price | None, spent: Callable[[], tuple[int, int]], *, request_tokens: int, answer_tokens: int
    ):
        self._limits, self._price, self._spent = limits, price, spent
        self._request_tokens, self._answer_tokens = request_tokens, answer_tokens
        self._in_flight = 0
        self._settled = asyncio.Condition()

    def observe(self, tokens_in: int, tokens_out: int) -> None:
        """Update the estimate by the tokens of a request and its answer; some servers exceed the limit that they are sent."""
        self._request_tokens, self._answer_tokens = max(self._request_tokens, tokens_in), max(self._answer_tokens, tokens_out)

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
        tokens_in = spent_in + (self._in_flight + 1) * self._request_tokens
        tokens_out = spent_out + (self._in_flight + 1) * self._answer_tokens
        tokens, dollars = self._limits.budget_tokens, self._limits.budget_dollars
        if tokens is not None and tokens_in + tokens_out > tokens:
            return False
        return dollars is None or self._price is None or self._price.dollars(tokens_in, tokens_out) <= dollars
