"""`dim evaluate` with a judge: its options, its messages, and what it refuses before anything is asked."""

import json
import os
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from dim_jax.cli.judging import JudgeOptions
from dim_jax.designer.local import LocalDesigner
from dim_jax.errors import InputError
from tests.chat_server import ChatServer, Turnstile, good
from tests.evals_fixtures import LINES, benchmark, make_cases, paint
from tests.painter_fixtures import dim, tiny_checkpoint

OUT = Path("out")
COMMAND = ("evaluate", "imgedit", "--data", "data", "--out", "out")


@pytest.fixture(autouse=True)
def _place(tmp_path, monkeypatch):
    """A small ImgEdit, and what was painted of it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    cases = make_cases(Path("data"), ["add", "style", "style"])
    table = {case.id: {"id": f"{i}.png", "prompt": case.prompt, "edit_type": case.category} for i, case in enumerate(cases)}
    Path("data/singleturn.json").write_text(json.dumps(table))
    paint(OUT, cases, ("direct", "designed"))


def error(result: tuple[int, str]) -> str:
    """The one line of an error, after a note that the set is not whole."""
    code, said = result
    note, line = said.splitlines()[0], said.splitlines()[-1]
    assert code == 1, said
    assert "3 cases; all of" in note
    assert line.startswith("error: ")
    return line


def test_judge_and_report_each_alone():
    Path("prices.json").write_text('{"openai:m": {"input": 2.5, "output": 10}}')
    with ChatServer(good(LINES.format(4, 4, 4))) as server:
        judged = dim(*COMMAND, "--stage", "judge", "--judge", "openai:m", "--judge-base-url", server.url, "--prices", "prices.json")
        assert judged[0] == 0, judged[1]
        assert "direct: 3 of 3 questions to ask openai:m, about" in judged[1]
        assert "3 answered, 0 failed, 0 skipped; 3,300 tokens, $0.0105" in judged[1]
        assert not (OUT / "report.json").exists()
        done = dim(*COMMAND, "--stage", "report", "--prices", "prices.json", "--strict-official", "--seed", "5")
    assert len(server.requests) == 6
    assert done[0] == 0, done[1]
    assert done[1].endswith("wrote out/report.html, with report.md and report.json beside it\n")
    report = json.loads((OUT / "report.json").read_text())
    found = report["tracks"][0]["judges"]["openai:m"]
    assert found["metrics"]["score"]["mean"] == 4
    assert found["dollars"] == pytest.approx(0.0105)
    assert report["protocol"]["official_seed"] == 5
    assert "official" in found
    assert dim(*COMMAND, "--stage", "report")[0] == 0
    assert "official" not in json.loads((OUT / "report.json").read_text())["tracks"][0]["judges"]["openai:m"]


def test_a_second_judge_within_one_budget():
    with ChatServer(good(LINES.format(4, 4, 4))) as server:
        both = ("--judge", "openai:m", "--judge", "openai:n", "--judge-base-url", server.url)
        said = error(dim(*COMMAND, "--stage", "judge", *both, "--budget-tokens", "12000", "--max-tokens", "50", "--concurrency", "1"))
        assert "stopped by the budget" in said
        assert dim(*COMMAND, "--stage", "judge", *both)[0] == 0
    assert len(server.requests) == 12, "nothing is asked twice"
    assert dim(*COMMAND, "--stage", "report")[0] == 0
    assert len(json.loads((OUT / "report.json").read_text())["agreement"]) == 2


def test_ctrl_c_while_the_last_answers_are_under_way():
    """They are kept, and nothing else is asked: the next track and the report wait for the next run."""
    turnstile = Turnstile(good(LINES.format(4, 4, 4)), 0)

    def interrupt():
        while len(server.requests) < 3:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        turnstile.opened = 100

    with ChatServer(turnstile) as server:
        command = (*COMMAND, "--stage", "judge", "--judge", "openai:m", "--judge-base-url", server.url)
        thread = threading.Thread(target=interrupt)
        thread.start()
        code, said = dim(*command)
        thread.join()
        assert code == 130, said
        assert "stopped by Ctrl-C, 0 of 3 are left. Answers are kept" in said
        assert len(server.requests) == 3
        assert dim(*command)[0] == 0
    assert len(server.requests) == 6


def test_a_local_judge_that_answers_nonsense(monkeypatch):
    """Random weights: each question is asked three times, all of them fail, and none becomes a number."""
    load = LocalDesigner.from_pretrained
    monkeypatch.setattr(LocalDesigner, "from_pretrained", lambda path: replace(load(path), max_tokens=8))
    tiny_checkpoint(Path("tiny"))
    shutil.rmtree(OUT / "designed")
    code, said = dim(*COMMAND, "--stage", "judge", "--judge", "local:tiny")
    assert code == 0, said
    assert "0 answered, 3 failed" in said
    assert dim(*COMMAND, "--stage", "report")[0] == 0
    found = json.loads((OUT / "report.json").read_text())["tracks"][0]["judges"]["local:tiny"]
    assert (found["failed"], found["judged"], found["failed_share"], found["metrics"]) == (3, 0, 1.0, {})


def test_two_evaluations_beside_each_other():
    for name in ("before/out", "after/out"):
        paint(Path(name), make_cases(Path("data"), ["add", "style", "style"]))
    code, said = dim(*COMMAND[:-1], "both", "--compare", "before/out", "after/out")
    assert code == 0, said
    assert list(json.loads(Path("both/report.json").read_text())["runs"]) == ["before/out", "after/out"]
    assert "named twice" in error(dim(*COMMAND, "--compare", "before/out", "before/out"))
    assert "nothing is painted there" in error(dim(*COMMAND, "--compare", "before/out", "nowhere"))


def test_what_is_refused(monkeypatch):
    judge = (*COMMAND, "--stage", "judge")
    assert '"gpt-4o" is not a designer' in error(dim(*judge, "--judge", "gpt-4o"))
    Path("prompts.json").write_text('{"tint": "x"}')
    assert "asks nothing under tint" in error(dim(*judge, "--prompts", "prompts.json"))
    monkeypatch.delenv("OPENAI_API_KEY")
    assert "needs a key" in error(dim(*judge, "--judge", "openai:m"))
    assert "Give a model that judges" in dim(*judge, "--judge", "none")[1]
    with pytest.raises(InputError, match="Any edits is not judged"):
        JudgeOptions(judge=["openai:m"]).protocol(benchmark([], None))
