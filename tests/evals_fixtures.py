"""Folders as `dim evaluate --stage generate` leaves them, made without a model; and a judge that answers by what it is asked."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from dim_jax.designer.choice import DesignerSpec
from dim_jax.designer.limits import Limits, Price
from dim_jax.designer.stage_runner import DesignerFactory, StageRunner
from dim_jax.evals.benchmark import Benchmark, Case
from tests.chat_server import ChatServer, Reply, Request, good
from tests.painter_fixtures import picture

QUICK = Limits(backoff=0.01, longest_backoff=0.05)
LINES = "Reasoning: as asked\nCompliance: {}\nQuality: {}\nPreservation: {}"


def make_cases(data: Path, categories: Sequence[str]) -> list[Case]:
    """A case of each category with a source of its own, below `data`."""
    data.mkdir(parents=True, exist_ok=True)
    cases = []
    for i, category in enumerate(categories):
        source = data / f"{i}.png"
        picture(24, 16, i).save(source)
        cases.append(Case(f"case {i}", category, f"Paint number {i} red.", source))
    return cases


def paint(out: Path, cases: Sequence[Case], tracks: Sequence[str] = ("direct",), seed: int = 100) -> None:
    """Results for the cases, and what `--stage generate` says of them."""
    for number, track in enumerate(tracks):
        rows = []
        for i, case in enumerate(cases):
            file = out / track / "pictures" / f"{case.file}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            picture(24, 16, seed + 1000 * number + i).save(file)
            painted = case.prompt if track == "direct" else f"Blueprint: {case.prompt}"
            row = {"id": case.id, "category": case.category, "prompt": case.prompt, "painted_prompt": painted}
            rows.append(row | {"pictures": [str(file.relative_to(out / track))], "seconds": 1.5})
        (out / track / "cases.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (out / "run.json").write_text(json.dumps({"benchmark": "any", "checkpoint": "nano", "weights": "sha256:0", "seed": 0}))


def benchmark(cases: Sequence[Case], protocol: str | None = "imgedit", **options) -> Benchmark:
    return Benchmark("any", "Any edits", "edit", lambda data: list(cases), lambda case, k: f"{case.id}.png", protocol, **options)


def answering(answer: Callable[[Request], str], **options) -> Reply:
    """A good completion whose text follows from the request."""

    def reply(request: Request) -> Iterator[bytes]:
        yield from good(answer(request), **options)(request)

    return reply


def judge_of(server: ChatServer, model: str = "m", price: Price | None = None) -> DesignerFactory:
    return DesignerFactory(lambda: DesignerSpec.parse(f"openai:{model}").open(base_url=server.url, max_tokens=200, time_limit=30.0), price)


def runner(**options) -> tuple[StageRunner, list[str]]:
    """One that keeps the lines that it logs."""
    lines: list[str] = []
    return StageRunner(**{"limits": QUICK, "log": lines.append} | options), lines
