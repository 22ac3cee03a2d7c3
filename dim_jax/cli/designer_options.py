"""The options of every command that asks a designer many things, declared once."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from dim_jax.cli.options import with_options
from dim_jax.designer.limits import Limits, Price


@dataclass(frozen=True)
class DesignerOptions:
    """The options of every command that asks a designer many things; `with_designer_options` adds them."""

    base_url: Annotated[str | None, typer.Option(help="Of the server, such as http://localhost:8000/v1.")] = None
    concurrency: Annotated[int, typer.Option(min=1, help="Calls under way at once.")] = Limits.concurrency
    requests_per_minute: Annotated[float | None, typer.Option(help="What the account allows.")] = None
    tokens_per_minute: Annotated[float | None, typer.Option(help="What the account allows, of questions and answers.")] = None
    budget_tokens: Annotated[int | None, typer.Option(help="For the whole output, with what it has cost before.")] = None
    budget_dollars: Annotated[float | None, typer.Option(help="The same in dollars; needs --prices.")] = None
    prices: Annotated[
        Path | None, typer.Option(help='JSON, dollars for a million tokens: {"openai:gpt-4o": {"input": 2.5, "output": 10}}.')
    ] = None
    time_limit: Annotated[float | None, typer.Option(help="Seconds, after which nothing new is asked.")] = None
    call_limit: Annotated[float, typer.Option(help="Seconds for one call.")] = 180.0
    tries: Annotated[int, typer.Option(min=1, help="Of one question, before it counts as failed.")] = Limits.tries
    longest_wait: Annotated[
        float, typer.Option(help="Seconds that the server may ask to wait (Retry-After); if it asks for more, the run ends.")
    ] = Limits.longest_wait
    max_tokens: Annotated[int, typer.Option(min=1, help="Of one answer; models that think first need more.")] = 2048
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Ask again what failed before.")] = False

    def limits(self) -> Limits:
        return Limits(
            self.concurrency, self.requests_per_minute, self.tokens_per_minute, self.budget_tokens, self.budget_dollars,
            self.time_limit, self.tries, longest_wait=self.longest_wait,
        )  # fmt: skip

    def price(self, designer: str) -> Price | None:
        """Of a designer, or None without a table."""
        return Price.read(self.prices, designer) if self.prices else None

    def open(self, choice: Any) -> Any:
        """The designer of a `DesignerSpec`."""
        return choice.open(base_url=self.base_url, max_tokens=self.max_tokens, time_limit=self.call_limit)


with_designer_options = with_options(options=DesignerOptions)


def local_designer(name: str, sampler: Any, resolution: int, dtype: Any = None) -> Any:
    """The Qwen2.5-VL of the checkpoint `name`; "": the sampler's own encoder, which sees pictures of this resolution."""
    from dim_jax.designer.local import LocalDesigner  # imports JAX

    return LocalDesigner.from_pretrained(name, dtype=dtype) if name else LocalDesigner.from_sampler(sampler, resolution)


def local_judge(name: str, sampler: Any) -> Any:
    """The encoder of the checkpoint `name` ("": the sampler's own) as a judge, which reads what this sampler's encoder reads."""
    judge = local_designer(name, sampler, sampler.settings.resolution, sampler.dtype)
    return replace(judge, prompt_mode=sampler.prompt_mode, processor=judge.processor.at(sampler.settings.resolution))
