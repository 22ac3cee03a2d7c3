"""The judge: what it is asked, that bad answers are asked again and then counted as failed, that nothing is paid for twice or lost."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from dim_jax.designer.limits import Limits, Price
from dim_jax.errors import InputError
from dim_jax.evals.judge import judge, read_judgements
from dim_jax.evals.protocols import protocol
from tests.chat_server import ChatServer, Request, Turnstile, completion, dropped, good, raw, response, status
from tests.evals_fixtures import LINES, QUICK, answering, judge_of, make_cases, paint, runner
from tests.painter_fixtures import picture
from tests.started import started

IMGEDIT, GEDIT = protocol("imgedit"), protocol("gedit")
OUT = Path("out")
JOURNAL, FAILURES = OUT / "direct/judge/openai_m.jsonl", OUT / "direct/judge/openai_m.failures.jsonl"


@pytest.fixture(autouse=True)
def _place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_what_is_asked_and_kept():
    cases = make_cases(Path("data"), ["add", "style", "skin tone"])
    paint(OUT, cases)
    asked, told = runner()
    with ChatServer(good(LINES.format(4, 3, 2))) as server:
        judge(OUT, cases, IMGEDIT, judge_of(server, price=Price(2, 8)), asked)
    assert len(server.requests) == 3
    for request in server.requests:
        (number,) = (i for i in range(3) if f"Paint number {i} red." in request.text)
        assert request.pictures == [
            (Path(f"data/{number}.png")).read_bytes(),
            (OUT / f"direct/pictures/{cases[number].file}.png").read_bytes(),
        ]
        assert (request.body["temperature"], request.body["seed"]) == (0, 0)
    kept = rows(JOURNAL)
    assert {row["id"] for row in kept} == {f"case {i}/edit" for i in range(3)}
    for row in kept:
        assert row["prompt"] == LINES.format(4, 3, 2), "the answer as it came"
        assert row["design"].keys() >= {"key", "designer", "prompt_version", "instruction", "tokens_in", "tokens_out", "model"}
        assert (row["design"]["model"], row["design"]["designer"]) == ("m", "openai:m")
    assert len({row["design"]["prompt_version"] for row in kept}) == 3, "each type has a text of its own"
    (found,) = read_judgements(OUT / "direct", cases, IMGEDIT)
    assert [one.metrics for one in found.cases] == [{"score": 3, "compliance": 4, "quality": 3, "preservation": 2}] * 3
    assert (found.judge, found.models, found.tokens_in, found.tokens_out) == ("openai:m", {"m": 3}, 3000, 300)
    assert told[0].startswith("direct: 3 of 3 questions to ask openai:m, about ")
    assert "$0.02" in told[0]
    assert "3 answered, 0 failed, 0 skipped; 3,300 tokens, $0.0084" in told[1]
    again, told = runner()
    with ChatServer(status(500)) as server:
        judge(OUT, cases, IMGEDIT, judge_of(server), again)
    assert not server.requests, "nothing is paid for twice"
    assert told[0] == "direct: 0 of 3 questions to ask openai:m"


BAD = {
    "refuses": good(refusal="I can't help with that."),
    "refuses in words": good("I'm sorry, but I can't assist with this picture."),
    "filtered": good("", finish="content_filter"),
    "filtered before": status(400, "flagged", code="content_filter"),
    "truncated": good(LINES.format(4, 4, 4), finish="length"),
    "ends within the JSON": good('{"reasoning": "The cat is grey", "score": [4, 4'),
    "prose": good("The edit is well done. All 3 cats are grey now."),
    "another language": good("编辑效果很好，猫变成了灰色。"),
    "half a score": good("Compliance: 4.5"),
    "a fraction": good("4/5"),
    "two of three": good("[4, 5]"),
    "four of three": good("[4, 5, 4, 5]"),
    "off the scale": good(LINES.format(4, 4, 9)),
    "a wrong denominator": good(LINES.format("8/10", "8/10", "8/10")),
    "nothing": good(""),
    "no text": good(None),
    "null scores": good('{"compliance": null, "quality": 4, "preservation": 4}'),
    "429": status(429),
    "500": status(500),
    "closes": dropped(80),
    "no JSON": raw(response(200, b"<html><title>Bad gateway</title></html>")),
}  # fmt: skip


@pytest.mark.parametrize("fault", BAD)
def test_every_bad_answer_is_a_failure(fault):
    cases = make_cases(Path("data"), ["add"])
    paint(OUT, cases)
    asked, _ = runner(limits=Limits(backoff=0.01, longest_backoff=0.02, tries=2))
    with ChatServer(good(LINES.format(4, 4, 4)), BAD[fault]) as server:
        judge(OUT, cases, IMGEDIT, judge_of(server), asked)
        (OUT / f"direct/pictures/{cases[0].file}.png").unlink()
        paint(OUT, cases, seed=200)  # another picture, hence another question; the server has been reached before
        judge(OUT, cases, IMGEDIT, judge_of(server, "n"), asked)
    found = {one.judge: one.cases[0] for one in read_judgements(OUT / "direct", cases, IMGEDIT)}
    assert found["openai:n"].failed
    assert found["openai:n"].metrics is None
    assert found["openai:n"].verdicts["edit"].reason
    assert len(found["openai:n"].verdicts["edit"].texts) == 3, "asked three times"
    assert not found["openai:m"].failed
    assert found["openai:m"].metrics is None, "an answer about another picture counts for nothing"


def test_a_bad_answer_is_asked_again_otherwise():
    cases = make_cases(Path("data"), ["add"])
    paint(OUT, cases)
    asked, _ = runner()
    with ChatServer(good("Hm."), good("4/5"), good(LINES.format(4, "4.5", "**5**"))) as server:
        judge(OUT, cases, IMGEDIT, judge_of(server), asked)
    assert [(request.body["temperature"], request.body["seed"]) for request in server.requests] == [(0, 0), (0.7, 1), (0.7, 2)]
    assert [row["design"]["text"] for row in rows(FAILURES)] == ["Hm.", "4/5"], "kept for good"
    (found,) = read_judgements(OUT / "direct", cases, IMGEDIT)
    assert found.cases[0].metrics is not None
    assert found.cases[0].metrics["score"] == 4.5
    assert len(found.cases[0].verdicts["edit"].texts) == 3
    assert found.tokens_in == 3000, "what failed was paid for too"


def test_failed_ones_are_asked_again_when_told_to():
    cases = make_cases(Path("data"), ["add"])
    paint(OUT, cases)
    with ChatServer(good("Hm.")) as server:
        judge(OUT, cases, IMGEDIT, judge_of(server), runner()[0])
        assert len(server.requests) == 3
        judge(OUT, cases, IMGEDIT, judge_of(server), runner()[0])
        assert len(server.requests) == 3, "it has failed, and stays so"
        judge(OUT, cases, IMGEDIT, judge_of(server), runner(retry_failed=True)[0])
        assert len(server.requests) == 6
    with ChatServer(good(LINES.format(1, 1, 1))) as server:
        judge(OUT, cases, IMGEDIT, judge_of(server), runner(retry_failed=True)[0])
    (found,) = read_judgements(OUT / "direct", cases, IMGEDIT)
    assert not found.cases[0].failed


def test_several_questions_about_a_case():
    def answer(request: Request) -> str:
        return '{"score": [8, 6]}' if len(request.pictures) == 2 else '{"score": [9, 4]}'

    cases = make_cases(Path("data"), ["a", "b"])
    paint(OUT, cases, ("direct", "designed"))
    with ChatServer(answering(answer)) as server:
        judge(OUT, cases, GEDIT, judge_of(server), runner()[0])
    assert len(server.requests) == 8
    for track in ("direct", "designed"):
        (found,) = read_judgements(OUT / track, cases, GEDIT)
        assert [one.metrics for one in found.cases] == [{"O": pytest.approx(24**0.5), "SC": 6, "PQ": 4}] * 2


def test_a_case_with_one_failed_question_has_failed():
    cases = make_cases(Path("data"), ["a"])
    paint(OUT, cases)
    with ChatServer(answering(lambda request: "[8, 6]" if len(request.pictures) == 2 else "fine")) as server:
        judge(OUT, cases, GEDIT, judge_of(server), runner()[0])
    (found,) = read_judgements(OUT / "direct", cases, GEDIT)
    assert found.cases[0].failed
    assert found.cases[0].metrics is None
    assert found.cases[0].verdicts["SC"].scores == {"success": 8, "restraint": 6}


def test_a_budget_ends_it_and_more_goes_on():
    cases = make_cases(Path("data"), ["add"] * 5)
    paint(OUT, cases)
    with ChatServer(good(LINES.format(4, 4, 4))) as server:
        asked, _ = runner(limits=Limits(budget_tokens=6000, concurrency=1))
        with pytest.raises(InputError, match=r"stopped by the budget, \d of 5 are left"):
            judge(OUT, cases, IMGEDIT, judge_of(server), asked)
        first = len(server.requests)
        assert 0 < first < 5
        (found,) = read_judgements(OUT / "direct", cases, IMGEDIT)
        assert sum(one.metrics is not None for one in found.cases) == first
        judge(OUT, cases, IMGEDIT, judge_of(server), runner()[0])
    assert len(server.requests) == 5


def test_nothing_painted_and_damage():
    cases = make_cases(Path("data"), ["add"])
    with ChatServer() as server:
        with pytest.raises(InputError, match="nothing is painted there"):
            judge(OUT, cases, IMGEDIT, judge_of(server), runner()[0])
        paint(OUT, cases)
        Path("data/0.png").write_bytes(b"no picture")
        judge(OUT, cases, IMGEDIT, judge_of(server), runner()[0])
    assert not server.requests
    (found,) = read_judgements(OUT / "direct", cases, IMGEDIT)
    assert found.cases[0].failed
    JOURNAL.write_text('{"id": "case 0/edit"}\n')
    with pytest.raises(InputError, match=r"openai_m.jsonl, line 1 was not written by"):
        read_judgements(OUT / "direct", cases, IMGEDIT)


KILLED = """
import sys
from pathlib import Path
from dim_jax.evals.judge import judge
from dim_jax.evals.protocols import protocol
from tests.evals_fixtures import judge_of, make_cases, runner

class Server:
    url = sys.argv[1]

judge(Path("out"), make_cases(Path("data"), ["add"] * 12), protocol("imgedit"), judge_of(Server()), runner()[0])
"""


def test_a_kill_loses_nothing_that_was_paid_for(tmp_path):
    cases = make_cases(Path("data"), ["add"] * 12)
    paint(OUT, cases)
    turnstile = Turnstile(good(LINES.format(4, 4, 4)), 5)
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    with ChatServer(turnstile) as server:
        with started(tmp_path / "said", [sys.executable, "-c", KILLED, server.url], env, cwd=tmp_path) as run:
            run.wait_until(lambda: len(rows(JOURNAL)) == 5)
            run.process.send_signal(signal.SIGKILL)
            run.process.wait()
        before = JOURNAL.read_bytes()
        with JOURNAL.open("ab") as file:
            file.write(b'{"id": "case 7/edit", "prompt": "Compl')  # as a kill may leave it
        (found,) = read_judgements(OUT / "direct", cases, IMGEDIT)
        assert sum(one.metrics is not None for one in found.cases) == 5
        asked = len(server.requests)
        turnstile.opened = 1000
        judge(OUT, cases, IMGEDIT, judge_of(server), runner()[0])
    assert JOURNAL.read_bytes().startswith(before)
    assert len(rows(JOURNAL)) == 12
    assert len(server.requests) == asked + 7, "those that were answered are not asked again"


def test_a_judge_that_names_no_model():
    cases = make_cases(Path("data"), ["add"])
    paint(OUT, cases)
    body = json.loads(completion(LINES.format(4, 4, 4)))
    del body["model"]
    with ChatServer(raw(response(200, json.dumps(body).encode()))) as server:
        judge(OUT, cases, IMGEDIT, judge_of(server), runner()[0])
    (found,) = read_judgements(OUT / "direct", cases, IMGEDIT)
    assert found.models == {"openai:m": 1}


def test_the_last_picture_of_several_turns_is_judged():
    cases = make_cases(Path("data"), ["add"])
    paint(OUT, cases)
    picture(24, 16, 7).save(OUT / "direct/last.png")
    row = json.loads((OUT / "direct/cases.jsonl").read_text())
    (OUT / "direct/cases.jsonl").write_text(json.dumps(row | {"pictures": [*row["pictures"], "last.png"]}) + "\n")
    with ChatServer(good(LINES.format(4, 4, 4))) as server:
        judge(OUT, cases, IMGEDIT, judge_of(server), runner(limits=QUICK)[0])
    assert server.requests[0].pictures[1] == (OUT / "direct/last.png").read_bytes()
