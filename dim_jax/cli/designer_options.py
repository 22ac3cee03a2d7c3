"""The options of every command that asks a designer many things, declared once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from dim_jax.cli.options import with_options


@dataclass(frozen=True)
class DesignerOptions:
    """The options of every command that asks a designer many things; `with_designer_options` adds them."""

    base_url: Annotated[str | None, typer.Option(help="Of the server, such as http://localhost:8000/v1.")] = None
    concurrency: Annotated[int, typer.Option(min=1, help="Calls under way at once.")] = 8
    requests_per_minute: Annotated[float | None, typer.Option(help="What the account allows.")] = None
    tokens_per_minute: Annotated[float | None, typer.Option(help="What the account allows, of questions and answers.")] = None
    budget_tokens: Annotated[int | None, typer.Option(help="For the whole output, with what it has cost before.")] = None
    budget_dollars: Annotated[float | None, typer.Option(help="The same in dollars; needs --prices.")] = None
    prices: Annotated[
        Path | None, typer.Option(help='JSON, dollars for a million tokens: {"openai:gpt-4o": {"input": 2.5, "output": 10}}.')
    ] = None
    time_limit: Annotated[float | None, typer.Option(help="Seconds, after which nothing new is asked.")] = None
    call_limit: Annotated[float, typer.Option(help="Seconds for one call.")] = 180.0
    tries: Annotated[int, typer.Option(min=1, help="Of one question, before it counts as failed.")] = 6
    longest_wait: Annotated[
        float, typer.Option(help="Seconds that the server may ask to wait (Retry-After); if it asks for more, the run ends.")
    ] = 600.0
    max_tokens: Annotated[int, typer.Option(min=1, help="Of one answer; models that think first need more.")] = 2048
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Ask again what failed before.")] = False

    def limits(self) -> Any:
        """Of `dim_jax.designer.limits`."""
        from dim_jax.designer.limits import Limits

        return Limits(
            self.concurrency, self.requests_per_minute, self.tokens_per_minute, self.budget_tokens, self.budget_dollars,
            self.time_limit, self.tries, longest_wait=self.longest_wait,
        )  # fmt: skip

    def price(self, designer: str) -> Any:
        """Of a designer, or None without a table."""
        from dim_jax.designer.limits import Price

        return Price.read(self.prices, designer) if self.prices else None

    def open(self, choice: Any) -> Any:
        """The designer of a `Choice`."""
        return choice.open(base_url=self.base_url, max_tokens=self.max_tokens, time_limit=self.call_limit)


with_designer_options = with_options(options=DesignerOptions)
