"""Many questions: what is kept, tried again, paced, paid and stopped, against a local server through the real client."""

import asyncio
import itertools
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dim_jax.designer import runner
from dim_jax.designer.blueprint import PROMPT_VERSION
from dim_jax.designer.journal import Journal
from dim_jax.designer.limits import Limits, Price
from dim_jax.designer.rates import RateLimiter
from dim_jax.designer.runner import Job
from dim_jax.designer.task import Task
from dim_jax.errors import InputError
from tests.chat_server import ChatServer, dropped, good, hang, raw, response, status
from tests.designer_answers import GOOD
from tests.designer_runs import FAILURES, OUT, QUICK, go, job, prepare, rows
from tests.painter_fixtures import picture


@pytest.fixture(autouse=True)
def _place(tmp_path, monkeypatch):
    prepare(tmp_path, monkeypatch)


# What is kept


def test_rows_are_kept_with_their_blueprints():
    with ChatServer(good(f"<think>hm</think>\n{GOOD}\n", after=0.02)) as server:
        report = go(server, [job(i) for i in range(20)])
    assert (report.answered, report.failed, report.calls, report.tokens, report.stopped) == (20, 0, 20, 20 * 1100, None)
    assert sorted(row["id"] for row in rows()) == sorted(map(str, range(20)))
    for row in rows():
        design = row.pop("design")
        assert row == {"id": row["id"], "prompt": GOOD, "task": "any"}
        assert len(design.pop("key")) == 64
        assert design.pop("prompt_version") == PROMPT_VERSION
        assert design.pop("model") == "m", "as the server names it"
        assert design == {"designer": "openai:m", "instruction": f"Edit number {row['id']}.", "tokens_in": 1000, "tokens_out": 100}
    assert not FAILURES.exists()
    assert 1 < server.most_at_once <= QUICK.concurrency
    assert "sk-mine" not in OUT.read_text()


def test_a_second_run_asks_nothing():
    with ChatServer() as server:
        go(server, [job(i) for i in range(5)])
        before = OUT.read_bytes()
        report = go(server, [job(i) for i in range(7)])
    assert (report.skipped, report.answered, report.calls) == (5, 2, 2)
    assert OUT.read_bytes().startswith(before)


def test_request_key_inputs():
    """Another picture, instruction, model or prompt is asked anew; another name of the same picture is not."""
    picture(16, 16, 1).save("b.png")
    Path("copy.png").write_bytes(Path("a.png").read_bytes())
    with ChatServer() as server:
        go(server, [job(0)])
        assert go(server, [job(0, file="copy.png")]).skipped == 1
        assert go(server, [job(0, file="b.png")]).calls == 1
        assert go(server, [job(0, "Another.")]).calls == 1
        assert go(server, [job(0)], model="n").calls == 1


def test_a_question_that_occurs_twice_is_paid_once():
    with ChatServer(good(after=0.05)) as server:
        report = go(server, [job(i, "The same.") for i in range(6)])
    assert (report.answered, report.calls, report.tokens) == (6, 1, 1100)
    assert len({row["id"] for row in rows()}) == 6
    assert {row["prompt"] for row in rows()} == {GOOD}


def test_torn_last_line_is_removed_and_broken_line_is_refused():
    with ChatServer() as server:
        go(server, [job(i) for i in range(3)])
        whole = OUT.read_bytes()
        lines = whole.splitlines(keepends=True)
        OUT.write_bytes(b"".join(lines[:2]) + lines[2][:40])
        assert go(server, [job(i) for i in range(3)]).calls == 1
        assert len(rows()) == 3
        OUT.write_bytes(whole[:-1])  # only the end of the line is missing
        assert go(server, [job(i) for i in range(3)]).calls == 0
        OUT.write_bytes(lines[0] + b"{\n" + lines[1])
        with pytest.raises(InputError, match=r"out\.jsonl, line 2: is not a JSON object"):
            go(server, [job(0)])
        for mine in ("notes without a line end", "[" * 10**5 + "\n"):  # neither is torn off
            OUT.write_text(mine)
            with pytest.raises(InputError, match=r"out\.jsonl, line 1: is not a JSON object"):
                go(server, [job(0)])
            assert OUT.read_text() == mine
        OUT.write_bytes(lines[0].replace(b'"prompt": "', b'"prompt": null, "old": "'))
        with pytest.raises(InputError, match="line 1 was not written by"):
            go(server, [job(0)])
        OUT.write_text('{"id": "1", "prompt": "mine"}\n')
        with pytest.raises(InputError, match="line 1 was not written by"):
            go(server, [job(0)])
    assert OUT.read_text() == '{"id": "1", "prompt": "mine"}\n'


def test_second_run_on_locked_journal_is_refused():
    with ChatServer() as server, Journal(OUT), pytest.raises(InputError, match="another run is writing"):
        go(server, [job(0)])
    assert not server.requests


def test_another_task_with_other_pictures():
    """Two pictures in order, a text and a reader of its own; its answers and those of another task are not mixed up."""
    picture(16, 16, 1).save("b.png")
    shout = Task(lambda instruction: f"Shout {instruction}", str.upper, "v1", pictures=2)
    jobs = [Job((Path("a.png"), Path("b.png")), "it.", {"id": "1"})]
    with ChatServer(good("so be it"), good()) as server:
        assert go(server, jobs, task=shout).answered == 1
        assert server.requests[0].text == "Shout it."
        assert server.requests[0].pictures == [Path("a.png").read_bytes(), Path("b.png").read_bytes()]
        assert (rows()[0]["prompt"], rows()[0]["design"]["prompt_version"]) == ("SO BE IT", "v1")
        again = [Job((Path("a.png"), Path("b.png")), "it.", {"id": "2"})]
        assert go(server, again, task=shout).calls == 0
        assert go(server, again, task=replace(shout, version="v2")).calls == 1
        assert go(server, [Job((), "it.", {"id": "3"})], task=replace(shout, pictures=0)).calls == 1
        assert server.requests[-1].pictures == []


# What fails


def test_failures_have_a_file_of_their_own_and_are_retried_only_on_request():
    refusal = "I'm sorry, but I can't assist with that."
    with ChatServer(good(refusal), good(GOOD[:400], finish="length"), status(400, "bad picture"), good()) as server:
        report = go(server, [job(i) for i in range(4)], Limits(concurrency=1))
        assert (report.answered, report.failed) == (1, 3)
        reasons = {row["id"]: row["design"]["reason"] for row in rows(FAILURES)}
        assert "refused" in reasons["0"]
        assert "cut off at 100 tokens" in reasons["1"]
        assert "bad picture" in reasons["2"]
        assert rows(FAILURES)[0]["prompt"] == "Edit number 0."
        assert rows(FAILURES)[0]["design"]["text"] == refusal
        assert rows(FAILURES)[0]["design"]["tokens_out"] == 100  # it was paid for
        assert go(server, [job(i) for i in range(4)]).calls == 0
        report = go(server, [job(i) for i in range(4)], retry_failed=True)
        assert (report.answered, report.skipped, report.calls) == (3, 1, 3)
        assert go(server, [job(i) for i in range(4)], retry_failed=True).calls == 0
    assert len(rows()) == 4


def test_a_damaged_picture_fails_alone_and_costs_nothing():
    Path("bad.png").write_bytes(Path("a.png").read_bytes()[:40])
    with ChatServer() as server:
        report = go(server, [job(0), job(1, file="bad.png"), job(2, file="none.png"), job(3)])
    assert (report.answered, report.failed, report.calls) == (2, 2, 2)
    assert {row["id"] for row in rows(FAILURES)} == {"1", "2"}
    assert "none.png" in FAILURES.read_text()


def test_turned_and_transparent_pictures_are_sent_as_the_painter_sees_them():
    wide = picture(32, 16)
    exif = Image.Exif()
    exif[0x0112] = 6
    wide.save("turned.jpg", exif=exif)
    wide.save("plain.jpg")
    wide.convert("P").save("few.gif")
    clear = wide.convert("RGBA")
    clear.putalpha(0)
    clear.save("clear.png")
    sizes = {}
    with ChatServer() as server:
        for i, file in enumerate(("turned.jpg", "plain.jpg", "few.gif", "clear.png")):
            go(server, [job(i, file=file)])
            Path("got").write_bytes(server.requests[-1].picture)
            with Image.open("got") as got:
                sizes[file] = got.size, got.format, got.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    assert sizes["turned.jpg"][:2] == ((16, 32), "PNG")
    assert sizes["plain.jpg"][:2] == ((32, 16), "JPEG")
    assert server.requests[1].picture == Path("plain.jpg").read_bytes()
    assert sizes["few.gif"][:2] == ((32, 16), "PNG")
    assert sizes["clear.png"] == ((32, 16), "PNG", True)


# What is tried again


@pytest.mark.parametrize(
    "trouble",
    [status(500), status(429), dropped(), dropped(300), raw(response(200, b"{")), raw(response(200, b"{}"))],
    ids=["500", "429", "drop", "half", "malformed", "empty"],
)
def test_transient_errors_are_retried(trouble):
    with ChatServer(trouble, trouble, good()) as server:
        report = go(server, [job(0)])
    assert (report.answered, report.calls) == (1, 3)


def test_an_answer_that_does_not_come_is_asked_for_again():
    with ChatServer(hang(600.0), hang(600.0), good()) as server:
        report = go(server, [job(0)], replace(QUICK, tries=50), time_limit=0.5)
    assert report.answered == 1
    assert report.calls >= 3


def test_request_fails_after_max_tries():
    with ChatServer(status(503, "loading")) as server:
        report = go(server, [job(0)], Limits(tries=3, backoff=0.01))
    assert (report.failed, report.calls, len(server.requests)) == (1, 3, 3)
    assert "no answer in 3 tries, at last: the server answered 503: loading" in rows(FAILURES)[0]["design"]["reason"]


def test_retry_after_pauses_all_requests():
    """Nobody asks before the time that the server named, whoever was told."""
    with ChatServer(*[good()] * 3, status(429, headers={"Retry-After": "0.6"}), good(after=0.02)) as server:
        report = go(server, [job(i) for i in range(12)], Limits(concurrency=2, backoff=0.01))
    assert report.answered == 12
    times = [request.time for request in server.requests]
    assert times[5] - times[3] > 0.55  # one call may have been under way


def test_backoff_grows_with_jitter():
    limits = Limits(backoff=0.5, longest_backoff=3.0)
    for tries, most in ((1, 0.5), (2, 1), (3, 2), (4, 3), (50, 3)):
        waits = [limits.backoff_seconds(tries) for _ in range(400)]
        assert 0 <= min(waits) < 0.1 * most
        assert 0.9 * most < max(waits) <= most


@pytest.mark.parametrize(("reply", "words"), [(status(401, "sk-mine"), "OPENAI_API_KEY"), (status(404, "no model m"), "no model m")])
def test_a_wrong_key_is_one_clear_error_without_another_try(reply, words):
    with ChatServer(reply) as server, pytest.raises(InputError, match=words):
        go(server, (job(i) for i in itertools.count()), Limits(concurrency=4))
    assert len(server.requests) <= 4  # those that were under way when the first was refused
    assert os.listdir() == ["a.png"]


def test_answers_in_flight_are_kept_when_credit_ends():
    refused = threading.Event()

    def refuse(request):
        yield from status(402)(request)
        refused.set()

    def wait(request):
        assert refused.wait(300)
        yield from good(after=0.3)(request)

    with ChatServer(wait, refuse, good()) as server, pytest.raises(InputError, match="credit"):
        go(server, [job(i) for i in range(9)], Limits(concurrency=2))
    assert len(rows()) == 1


def test_unanswered_requests_end_the_run():
    with (
        ChatServer(dropped()) as server,
        pytest.raises(InputError, match=f"{runner.MAX_UNANSWERED} requests in a row.*no connection"),
    ):
        go(server, (job(i) for i in itertools.count()), Limits(tries=2, backoff=0.001))
    assert runner.MAX_UNANSWERED <= len(rows(FAILURES)) + 1 <= runner.MAX_UNANSWERED + 8


# Limits


def test_concurrency():
    with ChatServer(good(after=0.03)) as server:
        go(server, [job(i) for i in range(30)], Limits(concurrency=3))
    assert server.most_at_once == 3


def test_requests_a_minute_are_kept():
    """1,200 a minute are one every 50 ms."""
    start = time.monotonic()
    with ChatServer(good(after=0.1)) as server:
        go(server, [job(i) for i in range(40)], Limits(concurrency=8, requests_per_minute=1200.0))
    assert all(request.time - start >= 0.05 * number for number, request in enumerate(server.requests))


def test_tokens_a_minute_are_kept():
    """Answers take 1,100 tokens: 660,000 a minute are ten a second, whatever was expected at first."""
    start = time.monotonic()
    with ChatServer() as server:
        go(server, [job(i) for i in range(30)], Limits(concurrency=4, tokens_per_minute=660_000.0))
    assert server.requests[-1].time - start > 2.9 * 0.9


def test_rate_limit_is_fully_used(monkeypatch):
    """One every 50 ms, no later; what was booked wrongly is made up for."""

    async def times() -> list[float]:
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: 100.0)
        pace = RateLimiter(1200.0)
        first = [pace.reserve(1.0) for _ in range(40)]
        pace.correct(-20.0)
        return [*first, pace.reserve(1.0)]

    np.testing.assert_allclose(asyncio.run(times()), [*(100 + 0.05 * np.arange(40)), 101])


def test_a_budget_of_tokens_is_never_exceeded_and_goes_on_when_raised():
    jobs = [job(i) for i in range(30)]
    with ChatServer(good(after=0.01)) as server:
        report = go(server, jobs, Limits(concurrency=4, budget_tokens=12_000))
        assert report.stopped == "the budget"
        assert report.answered >= 5
        assert report.tokens <= 12_000
        assert go(server, jobs, Limits(budget_tokens=12_000)).calls <= 2  # what is known of tokens by now leaves no room for more
        assert go(server, jobs, Limits(budget_tokens=100_000)).stopped is None
    assert len(rows()) == 30
    assert len(server.requests) == 30


def test_a_budget_in_dollars():
    Path("prices.json").write_text('{"openai:m": {"input": 2, "output": 10}}')
    price = Price.read(Path("prices.json"), "openai:m")
    assert price.dollars(1000, 100) == pytest.approx(0.003)
    with ChatServer() as server:
        report = go(server, [job(i) for i in range(30)], Limits(concurrency=2, budget_dollars=0.03), price=price)
        assert report.stopped == "the budget"
        assert 7 <= report.answered <= 10
        with pytest.raises(InputError, match="--prices"):
            go(server, [job(0)], Limits(budget_dollars=1.0))
    for text in ("", "{}", '{"openai:m": {"input": "x"}}', "[]"):
        Path("prices.json").write_text(text)
        with pytest.raises(InputError, match=r"prices\.json.*openai:m"):
            Price.read(Path("prices.json"), "openai:m")
    with pytest.raises(InputError, match=r"none\.json"):
        Price.read(Path("none.json"), "openai:m")


def test_a_time_limit_ends_the_run_and_keeps_what_is_under_way():
    with ChatServer(good(after=0.2)) as server:
        report = go(server, (job(i) for i in itertools.count()), Limits(concurrency=2, time_limit=1.0))
    assert report.stopped == "the time limit"
    assert report.answered == len(server.requests) == len(rows()) >= 2


def test_a_time_limit_ends_waiting_too():
    start = time.perf_counter()
    with ChatServer(status(429, headers={"Retry-After": "500"})) as server:
        report = go(server, [job(0)], Limits(time_limit=0.3))
    assert time.perf_counter() - start < 300
    assert (report.stopped, report.failed) == ("the time limit", 0)
    assert not rows(FAILURES)  # it may be asked again


@pytest.mark.parametrize("name", ["concurrency", "budget_tokens", "tries", "requests_per_minute", "time_limit"])
def test_limits_are_positive(name):
    kind = int if name in ("concurrency", "budget_tokens", "tries") else float
    for value in (0, -1, *([] if kind is int else ["nan", "inf"])):
        with pytest.raises(InputError, match=name):
            Limits(**{name: kind(value)})
