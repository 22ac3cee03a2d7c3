"""Runs of many questions for the tests of the runner: in a folder of their own, through the real client, against a local server."""

import json
from pathlib import Path

from dim_jax.designer.choice import DesignerSpec
from dim_jax.designer.journal import Journal
from dim_jax.designer.limits import Limits
from dim_jax.designer.runner import Job, Report, run
from tests.chat_server import ChatServer
from tests.painter_fixtures import picture

QUICK = Limits(backoff=0.01, longest_backoff=0.05)
OUT = Path("out.jsonl")
FAILURES = Path("out.failures.jsonl")


def prepare(tmp_path, monkeypatch) -> None:
    """A folder with a picture, and a key."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    picture(16, 16).save("a.png")


def job(i: int, instruction: str | None = None, file: str = "a.png") -> Job:
    return Job((Path(file),), instruction or f"Edit number {i}.", {"id": str(i), "prompt": f"Edit number {i}.", "task": "any"})


def go(server: ChatServer, jobs, limits: Limits = QUICK, *, time_limit: float = 60.0, model: str = "m", **options) -> Report:
    designer = DesignerSpec.parse(f"openai:{model}").open(base_url=server.url, max_tokens=100, time_limit=time_limit)
    with Journal(OUT) as journal:
        return run(jobs, designer, journal, limits, **options)


def rows(path: Path = OUT) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
