"""Captions along dimensions and prompts written out: what is asked, and what of an answer is kept."""

import json
from pathlib import Path

import pytest

from dim_jax.datasets.construction.captions import caption_task, prose, rewriting_task
from dim_jax.datasets.construction.config import read_config
from dim_jax.designer.task import AnswerError
from tests.chat_server import ChatServer, good
from tests.painter_fixtures import dim, one_error

TEXT = "A white cup stands on a saucer of the same porcelain. Beside it lies a small spoon, and the dark table fills the frame."
WRAPPED = {
    "plain": TEXT,
    "thoughts": f"<think>A cup?</think>\n{TEXT}",
    "fence": f"```text\n{TEXT}\n```",
    "tag": f"<answer>{TEXT}</answer>",
    "announced": f"Here is the caption:\n{TEXT}",
    "label": f"**Caption:** {TEXT}",
    "quotes": f"“{TEXT}”",
    "lines": TEXT.replace(". ", ".\n\n"),
}


@pytest.mark.parametrize("answer", WRAPPED.values(), ids=WRAPPED)
def test_the_text_of_an_answer(answer):
    assert prose(answer, 10) == TEXT
    assert prose(prose(answer, 10), 10) == TEXT


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("I'm sorry, I can't describe people.", "refused"), ("A cup.", "too short: 2 words of at least 10"), ("", "too short"),
        (f"- A cup.\n- A saucer.\n- {TEXT}", "a list"), (TEXT[:-1], "in the middle of a sentence"), ("<think>It is", "thoughts"),
    ],
)  # fmt: skip
def test_other_answers_are_refused_with_a_reason(answer, reason):
    with pytest.raises(AnswerError, match=reason):
        prose(answer, 10)


def test_the_dimensions_are_asked_for_and_make_the_version():
    captions = read_config("dim_t2i.toml", None)["captions"]
    assert len(captions["dimensions"]) == len({name for name, _ in captions["dimensions"]}) == 21
    task = caption_task(captions["dimensions"], captions["words"], captions["min_words"])
    asked = task.prompt("")
    assert all(f"- {name}: {what}" in asked for name, what in captions["dimensions"])
    assert "about 150 words" in asked
    assert task.version != caption_task(captions["dimensions"][1:], 150, 60).version
    assert task.version == caption_task(captions["dimensions"], 150, 10).version  # what is taken for an answer is not a question
    assert (task.pictures, rewriting_task(150, 60).pictures) == (1, 0)


def test_rewriting_short_prompts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("short.jsonl").write_text(
        "".join(json.dumps({"id": str(i), "prompt": f"{i} white cups", "tag": "count"}) + "\n" for i in range(3))
    )
    Path("own.toml").write_text("[captions]\nmin_words = 10\n")
    arguments = ("build-data", "rewrite", "short.jsonl", "-o", "long.jsonl", "--designer", "vllm:m", "--config", "own.toml")
    with ChatServer(good(TEXT), good("No."), good(TEXT)) as server:
        code, text = dim(*arguments, "--base-url", server.url, "--concurrency", "1")
        assert (code, "2 answered, 1 failed" in text) == (0, True), text
        assert server.requests[0].pictures == []
        assert "\n0 white cups\n" in server.requests[0].text
        assert dim(*arguments, "--base-url", server.url, "--retry-failed")[0] == 0
    assert len(server.requests) == 4
    rows = [json.loads(line) for line in Path("long.jsonl").read_text().splitlines()]
    assert {row["id"] for row in rows} == {"0", "1", "2"}
    assert all(row["prompt"] == TEXT and row["tag"] == "count" for row in rows)
    assert "name another file" in one_error(dim(*arguments[:3], "-o", "short.jsonl", "--designer", "vllm:m"))
