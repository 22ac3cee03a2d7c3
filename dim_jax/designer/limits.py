"""Limits of a run: rates, retries, budgets, prices."""

import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dim_jax.errors import InputError, check
from dim_jax.storage.jsonl import json_loads


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
        check(not wrong, f"Limits must be positive; these are {', '.join(wrong)}.")

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
            row = json_loads(path.read_text(encoding="utf-8"))[designer]
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
