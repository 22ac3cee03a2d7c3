"""What is made of the bytes that servers send, whatever their shape: answers kept, rows that fail with a reason, runs that end."""

import json
import os
import time
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from pathlib import Path

import pytest

from dim_jax.designer.clients import retry_after
from dim_jax.designer.journal import Journal
from dim_jax.designer.responses import parse_json, read_completion, short_message, token_count
from tests.chat_server import ChatServer, completion, good, raw, response, status
from tests.designer_answers import GOOD
from tests.painter_fixtures import dim, one_error, picture

FAILURES = Path("cot.failures.jsonl")


@pytest.fixture(autouse=True)
def _place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VLLM_API_KEY", "sk-mine")
    monkeypatch.setenv("DIM_BLUEPRINTS", str(tmp_path / "kept.jsonl"))
    picture(40, 40, 1).save("in.png")
    table(2)


def table(number: int) -> None:
    lines = (json.dumps({"id": str(i), "image_path": "in.png", "prompt": f"Edit {i}."}) + "\n" for i in range(number))
    Path("rows.jsonl").write_text("".join(lines))


def design(server: ChatServer | str, *more: str) -> tuple[int, str]:
    url = server if isinstance(server, str) else server.url
    return dim("design", "rows.jsonl", "-o", "cot.jsonl", "--designer", "vllm:m", "--base-url", url, "--concurrency", "1", *more)


def one(server: ChatServer | str, *more: str) -> tuple[int, str]:
    url = server if isinstance(server, str) else server.url
    return dim("design", "--image", "in.png", "--prompt", "Blue.", "--designer", "vllm:m", "--base-url", url, *more)


def reasons() -> list[str]:
    return [json.loads(line)["design"]["reason"] for line in FAILURES.read_text().splitlines()]


def sent(body: object) -> bytes:
    return response(200, body if isinstance(body, bytes) else json.dumps(body).encode())


def chat(usage: object = None, **message: object) -> dict:
    return {"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}


def stream(*deltas: str, end: str = '{"choices": [{"delta": {}, "finish_reason": "stop"}]}') -> bytes:
    events = [json.dumps({"choices": [{"delta": {"content": text}}]}) for text in deltas]
    return "".join(f"data: {event}\n\n" for event in (*events, end, "[DONE]")).encode()


HALVES = (GOOD[:60], GOOD[60:])
KEPT = {
    "parts": chat(content=[{"type": "text", "text": half} for half in HALVES]),
    "parts without a type": chat(content=[{"text": HALVES[0]}, HALVES[1]]),
    "thoughts before it": chat(content=[{"type": "thinking", "thinking": "hm"}, {"type": "reasoning", "text": "hm"}, {"text": GOOD}]),
    "an empty refusal": chat(content=GOOD, refusal={}),
    "a stream": stream(*HALVES),
    "UTF-16": json.dumps(chat(content=GOOD)).encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf" + json.dumps(chat(content=GOOD)).encode(),
    "a key twice": json.dumps(chat(content=GOOD)).replace('{"choices"', '{"choices": [], "choices"').encode(),
    "usage of 9,000 digits": json.dumps(chat(content=GOOD)).replace("null", '{"prompt_tokens": ' + "9" * 9000 + "}").encode(),
}


@pytest.mark.parametrize("body", KEPT.values(), ids=KEPT)
def test_answers_that_are_kept(body):
    with ChatServer(raw(sent(body))) as server:
        code, text = design(server)
    assert (code, text.count("\n")) == (0, 1)
    assert "2 answered, 0 failed" in text
    assert [json.loads(line)["prompt"] for line in Path("cot.jsonl").read_text().splitlines()] == [GOOD, GOOD]


FAILED = {
    "an object": (chat(content={"text": GOOD}), "content is not text"),
    "a number": (chat(content=5), "content is not text: 5"),
    "no part of text": (chat(content=[{"type": "image_url"}, 3]), "content is not text"),
    "a message of text": ({"choices": [{"message": "so be it"}]}, "message is not an object: so be it"),
    "a message of parts": ({"choices": [{"message": ["so be it"]}]}, "message is not an object: so be it"),
    "a refusal of parts": (chat(refusal={"reason": "not nice"}), "refused: not nice"),
    "an error in the choice": ({"choices": [{"message": {"content": ""}, "error": {"message": "gone"}}]}, "broke off: gone"),
    "no choice, but paid": ({"choices": [], "usage": {"prompt_tokens": 9}}, "not a chat completion"),
    "a stream cut off": (stream(*HALVES, end="{}"), "ends in the middle"),
    "nothing": (b"", "not a chat completion, not JSON"),
    "a page": (b"<!doctype html><html><title>Sign in &amp; go</title><body>x", "not JSON: Sign in & go"),
    "a list": ([], "not a chat completion"),
    "a text": ("hello", "not a chat completion"),
    "null": (None, "not a chat completion"),
    "no choices": ({"choices": None}, "not a chat completion"),
    "choices of a text": ({"choices": "x"}, "not a chat completion"),
    "a choice of nothing": ({"choices": [None]}, "not a chat completion"),
    "deep": (b"[" * 100_000, "not a chat completion"),
    "an error": ({"error": {"message": "the provider is down"}}, "the provider is down"),
}


@pytest.mark.parametrize(("body", "reason"), FAILED.values(), ids=FAILED)
def test_answers_that_fail_their_row_alone(body, reason):
    """The other row is answered, and a second run does not end there either."""
    with ChatServer(raw(sent(body)), good()) as server:
        code, text = design(server, "--tries", "1")
        assert (code, text.count("\n")) == (0, 1)
        assert "1 answered, 1 failed" in text
        assert reason in reasons()[0]
        assert len(reasons()[0]) < 300
        assert "0 answered, 0 failed, 2 skipped" in design(server)[1]


@pytest.mark.parametrize("value", [-5, -1e300, 0, True, None, "many", "-5", [], 2.5, float("nan"), float("inf"), 1e300, 10**400])
def test_missing_token_counts_are_estimated(value):
    assert token_count(value) is None
    found = read_completion(json.dumps(chat({"prompt_tokens": value, "completion_tokens": value}, content="x")).encode())
    assert (found.tokens_in, found.tokens_out) == (None, None)


def test_counts_in_other_types():
    assert [token_count(value) for value in (7, 7.0, "7")] == [7, 7, 7]


def test_negative_counts_do_not_pay_for_others():
    """Nor do those that an output of before holds."""
    table(50)
    with ChatServer(raw(sent(chat({"prompt_tokens": -10_000, "completion_tokens": -10_000}, content=GOOD)))) as server:
        assert "stopped by the budget" in design(server, "--budget-tokens", "9000")[1]
        assert len(server.requests) <= 5
        with Journal(Path("cot.jsonl")) as journal:
            assert 0 < journal.tokens_in + journal.tokens_out <= 9000
        lines = Path("cot.jsonl").read_text().splitlines()
        row = json.loads(lines[0])
        row["design"]["tokens_in"] = -(10**9)
        Path("cot.jsonl").write_text("\n".join([json.dumps(row), *lines[1:]]) + "\n")
        asked = len(server.requests)
        design(server, "--budget-tokens", "4000")
        assert len(server.requests) - asked <= 1


@pytest.mark.parametrize("price", ["-1", "NaN", "Infinity"])
def test_invalid_prices_are_refused(price):
    Path("prices.json").write_text(f'{{"vllm:m": {{"input": 1, "output": {price}}}}}')
    assert "no price of" in one_error(design("http://localhost:1/v1", "--prices", "prices.json", "--budget-dollars", "1"))


# Errors


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ([{"error": {"code": 400, "message": "Bad picture"}}], "Bad picture"),
        ({"detail": "Only 1 image"}, "Only 1 image"),
        ({"detail": [{"loc": ["body", "model"], "msg": "Field required"}]}, "body.model: Field required"),
        ({"error": "needs more memory"}, "needs more memory"),
        ({"error": {"message": "Provider error", "metadata": {"raw": "too many faces"}}}, "Provider error (too many faces)"),
        ({"object": "error", "message": "no such thing", "code": 400}, "no such thing"),
        (b"<html><head><title>413 Too Large</title></head><body><h1>413</h1></body></html>", "413 Too Large"),
        (b"<h1>Bad</h1><script>x()</script>", "Bad"),
        (b"plain\n  words \x1b[31m", "plain words [31m"),
        (b"", "Status"),
        (b"caf\xe9", "caf\ufffd"),
        ({"error": {"message": "half \ud83d"}}, "half \ufffd"),
        ({"strange": [1]}, '{"strange": [1]}'),
    ],
)
def test_server_message_is_the_reason(body, said):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    with ChatServer(raw(response(400, data))) as server:
        assert design(server)[0] == 0
    assert reasons()[0] == f"the server refused the request (400): {said}"


def test_a_reason_is_short():
    assert len(short_message({"detail": ["x" * 9000] * 9})) == 200
    assert short_message(parse_json(b"[" * 9000)) == "[" * 199 + "…"


@pytest.mark.parametrize(
    ("code", "body", "said"),
    [
        (
            400,
            [{"error": {"code": 400, "message": "API key not valid. Please pass a valid API key."}}],
            "rejects the key in VLLM_API_KEY",
        ),
        (401, {"detail": "Unauthorized"}, "401: Unauthorized"),
        (401, b"", "rejects the key"),
        (403, b"<html><title>403 Forbidden</title>", "403: 403 Forbidden"),
        (402, {"error": "Insufficient Balance"}, "no credit left"),
        (400, {"error": {"message": "Your credit balance is too low to access the API"}}, "no credit left"),
        (404, {"error": {"message": 'model "m" not found, try pulling it first'}}, "Check the model's name"),
        (404, b"404 page not found", "404 page not found"),
        (400, {"error": {"message": "m is not a valid model ID"}}, "Check the model's name"),
        (405, {"detail": "Method Not Allowed"}, "--base-url"),
        (200, {"error": {"code": 402, "message": "Insufficient credits"}}, "no credit left"),
    ],
)
def test_account_errors_end_the_run_and_keep_answers(code, body, said):
    table(4)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    with ChatServer(good(), raw(response(code, data))) as server:
        assert said in one_error(design(server))
        assert len(server.requests) == 2
    assert len(Path("cot.jsonl").read_text().splitlines()) == 1
    assert not FAILURES.exists()


def test_moderated_row_fails_alone():
    with ChatServer(status(403, "Your input was flagged", metadata={"reasons": ["violence"]}), good()) as server:
        assert "1 answered, 1 failed" in design(server)[1]
    assert "content filter" in reasons()[0]


# Limits to answers

LONG = "This model's maximum context length is 4096 tokens and your request has 3000 input tokens (2048 > 4096 - 3000)."


@pytest.mark.parametrize(
    "message",
    [f"'max_tokens' or 'max_completion_tokens' is too large: 2048. {LONG}", LONG, "max_tokens must be at least 1, got -5."],
)
def test_context_length_error_keeps_the_token_limit(message):
    with ChatServer(status(400, message, code=400, type="BadRequestError"), good()) as server:
        assert "1 answered, 1 failed" in design(server)[1]
    assert [request.body["max_tokens"] for request in server.requests] == [2048, 2048]


def test_no_budget_without_a_limit():
    def refuse(request):
        for name in ("max_tokens", "max_completion_tokens"):
            if name in request.body:
                return status(400, f"Unsupported parameter: '{name}'", code="unsupported_parameter", param=name)(request)
        return good()(request)

    with ChatServer(refuse) as server:
        assert "no budget can be kept" in one_error(design(server, "--budget-tokens", "100000"))
        assert len(server.requests) == 2
        assert "2 answered" in design(server)[1]


# Waits


@pytest.mark.parametrize("wait", ["86400", "9" * 400, 253402300000, "2.5 hours"])
def test_retry_after_over_longest_wait_ends_the_run(wait):
    value = {253402300000: formatdate(253402300000, usegmt=True), "2.5 hours": formatdate(time.time() + 9000, usegmt=True)}.get(wait, wait)
    with ChatServer(good(), status(429, "daily quota reached", headers={"Retry-After": value})) as server:
        message = one_error(design(server))
        assert len(server.requests) == 2
    assert "daily quota reached. It asks to wait " in message
    assert "--longest-wait" in message
    assert not FAILURES.exists()


def test_waits_are_shown_and_longest_wait_can_be_set():
    with ChatServer(status(429, "slow down", headers={"Retry-After": "2"}), good()) as server:
        code, text = design(server)
        assert code == 0
        assert f"vllm:m: waiting until {datetime.now():%Y}-" in text
        assert "slow down" in text
    with ChatServer(status(429, "slow down", headers={"Retry-After": "2"})) as server:
        assert "more than 1 s" in one_error(design(server, "--retry-failed", "--longest-wait", "1", "-o", "other.jsonl"))


@pytest.mark.parametrize(
    "value",
    ["-5", "nan", "inf", "soon", "", "1e9", "٣", "Mon", "Wed, 99 Xxx 99999 99:99:99 GMT", "Mon, 01 Jan 10000 00:00:00 GMT",
     "Mon, 01 Jan 2001 00:00:00 +99999999999999", "9" * 5000 + " Jan"],
)  # fmt: skip
def test_invalid_retry_after_is_ignored(value):
    assert not retry_after({"retry-after": value})


def test_retry_after_date_without_zone_is_utc(monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    later = (datetime.now(UTC) + timedelta(seconds=100)).strftime("%a, %d %b %Y %H:%M:%S -0000")
    assert 90 < (retry_after({"retry-after": later}) or 0) <= 100
    monkeypatch.undo()
    time.tzset()


# Half characters


def test_half_characters_fail_their_row():
    rows = [
        {"id": "a", "image_path": "in.png", "prompt": "Make it \ud83d blue."},
        {"id": "b\ude00", "image_path": "in.png", "prompt": "Blue."},
        {"id": "c", "image_path": "in\ud83d.png", "prompt": "Blue."},
        {"id": "d", "image_path": "in.png", "prompt": "Green \ud83d\ude00.", "note": "\ud83d"},
    ]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with ChatServer() as server:
        code, text = design(server)
        assert (code, len(server.requests)) == (0, 1)
        assert 'such as "a": the instruction is not valid Unicode text (half a character, U+D83D, at 8)' in text
        assert "0 answered, 0 failed, 4 skipped" in design(server)[1]
    (answered,) = [json.loads(line) for line in Path("cot.jsonl").read_text().splitlines()]
    assert (answered["id"], answered["note"], answered["design"]["instruction"]) == ("d", "\ud83d", "Green \U0001f600.")
    assert ["half a character" in reason for reason in reasons()] == [True, True, False]
    assert "in\ud83d.png: the picture cannot be read" in reasons()[2]


def test_a_picture_whose_name_is_no_text():
    """Latin-1, as old archives have it."""
    name = os.fsdecode(b"caf\xe9.png")
    Path("in.png").rename(name)
    Path("rows.jsonl").write_text(json.dumps({"id": "a", "image_path": name, "prompt": "Blue."}) + "\n")
    with ChatServer() as server:
        assert one(server, "--image", name, "-o", "b.txt") == (0, "wrote b.txt\n")
        assert "1 answered, 0 failed" in design(server)[1]
    assert json.loads(Path("cot.jsonl").read_text())["image_path"] == name


@pytest.mark.parametrize("line", ["[" * 100_000, "9" * 5000, '{"id": "1", "prompt": "x", "n": ' + "9" * 5000 + "}"])
def test_invalid_json_rows_are_refused(line):
    Path("rows.jsonl").write_text(line + "\n")
    assert "rows.jsonl, line 1: is not JSON" in one_error(design("http://localhost:1/v1"))


def test_half_characters_in_an_answer_are_replaced():
    with ChatServer(raw(sent(completion(GOOD.replace("blue", "bl\ud83due"))))) as server:
        assert one(server, "-o", "b.txt") == (0, "wrote b.txt\n")
    assert Path("b.txt").read_text() == GOOD.replace("blue", "bl\ufffdue") + "\n"
    Path("ready.jsonl").write_text(json.dumps({"id": "in", "prompt": GOOD.replace("blue", "bl\ud83due")}) + "\n")
    assert dim("design", "--image", "in.png", "--prompt", "x", "--designer", "file:ready.jsonl", "-o", "c.txt")[0] == 0
    assert Path("c.txt").read_text() == Path("b.txt").read_text()


def test_an_argument_that_is_no_text():
    with ChatServer() as server:
        assert "half a character" in one_error(one(server, "--prompt", "caf\udce9"))
        assert "half a character" in one_error(one(server, "--designer", "vllm:caf\udce9"))
    assert not server.requests
