"""The clients, through the real `openai` package against a local server: what is sent, and what is made of every kind of answer."""

import asyncio
import json
import re
import time
from email.utils import formatdate

import pytest

from dim_jax.designer.blueprint import prompt
from dim_jax.designer.choice import DesignerSpec
from dim_jax.designer.clients import SERVERS, Request, Response, TransientError, retry_after
from dim_jax.designer.picture import EncodedPicture
from dim_jax.errors import InputError
from tests.chat_server import ChatServer, drip, dropped, good, hang, raw, response, status
from tests.designer_answers import GOOD

INSTRUCTION = "Make the cup blue."
QUESTION = Request("7", INSTRUCTION, prompt(INSTRUCTION), (EncodedPicture(b"\x89PNG of a cup", "image/png"),))
KEY = "sk-secret-of-mine-123"


@pytest.fixture(autouse=True)
def _keys(monkeypatch):
    for server in SERVERS.values():
        monkeypatch.delenv(server.key, raising=False)
    for name in ("OPENAI_BASE_URL", "AZURE_OPENAI_API_KEY", "AZURE_OPENAI_ENDPOINT", "OPENAI_API_VERSION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def ask(server: ChatServer | None, *questions: Request, spelling: str = "openai:gpt-4o", **options) -> list[Response]:
    """One after another, by one designer, which the server's URL names unless it is None."""

    async def all_of_them() -> list[Response]:
        designer = DesignerSpec.parse(spelling).open(base_url=server and server.url, **options)
        try:
            return [await designer.complete(question) for question in questions or (QUESTION,)]
        finally:
            await designer.close()

    return asyncio.run(all_of_them())


# What is sent


def test_complete_sends_pictures_and_text():
    with ChatServer(good()) as server:
        (answer,) = ask(server, max_tokens=900)
    assert answer == Response(GOOD, None, 1000, 100, (), "m")
    (request,) = server.requests
    assert request.path == "/v1/chat/completions"
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert {name: request.body[name] for name in ("model", "temperature", "seed", "max_tokens")} == {
        "model": "gpt-4o", "temperature": 0, "seed": 0, "max_tokens": 900,
    }  # fmt: skip
    assert request.text == prompt(INSTRUCTION)
    assert request.picture == QUESTION.pictures[0].data
    assert request.body["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")


@pytest.mark.parametrize("kind", SERVERS)
def test_every_kind_of_server(kind, monkeypatch):
    """Its own key, and a name with colons and slashes."""
    monkeypatch.setenv(SERVERS[kind].key, "mine")
    with ChatServer(good()) as server:
        (answer,) = ask(server, spelling=f"{kind}:Qwen/Qwen2.5-VL:7b")
    assert answer.text == GOOD
    assert server.requests[0].body["model"] == "Qwen/Qwen2.5-VL:7b"
    assert server.requests[0].headers["authorization"] == "Bearer mine"


def test_azure(monkeypatch):
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "mine")
    with ChatServer(good()) as server:
        monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", server.url.removesuffix("/v1"))
        assert ask(None, spelling="azure:my-4o")[0].text == GOOD
    assert server.requests[0].path == "/openai/deployments/my-4o/chat/completions?api-version=2024-10-21"
    assert server.requests[0].headers["api-key"] == "mine"


def test_the_environment_names_the_server(monkeypatch):
    with ChatServer(good()) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        assert ask(None)[0].text == GOOD


@pytest.mark.parametrize(
    ("spelling", "words"),
    [
        ("openai:gpt-4o", "OPENAI_API_KEY"), ("anthropic:claude", "ANTHROPIC_API_KEY"), ("google:gemini", "GEMINI_API_KEY"),
        ("openrouter:x/y", "OPENROUTER_API_KEY"), ("azure:mine", "AZURE_OPENAI_API_KEY"),
    ],
)  # fmt: skip
def test_a_missing_key(spelling, words, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(InputError, match=words):
        DesignerSpec.parse(spelling).open()


def test_azure_without_endpoint(monkeypatch):
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "mine")
    with pytest.raises(InputError, match="AZURE_OPENAI_ENDPOINT"):
        DesignerSpec.parse("azure:mine").open()


@pytest.mark.parametrize("spelling", ["gpt-4o", "", "openai", "openai:", "file", "azure:", "none:x", "OpenAI:gpt-4o"])
def test_invalid_designer_spellings(spelling):
    with pytest.raises(InputError, match=re.escape(spelling) + ".*[Ww]rite"):
        DesignerSpec.parse(spelling)


# Parameters that a server does not take


def refuse(*names: str):
    """Refuses requests that have one of these parameters."""

    def reply(request):
        wrong = [name for name in names if name in request.body]
        if not wrong:
            return good()(request)
        return status(400, f"Unsupported parameter: '{wrong[0]}' is not supported with this model.", param=wrong[0])(request)

    return reply


def test_a_refused_parameter_is_dropped_once_and_recorded():
    with ChatServer(refuse("temperature", "max_tokens")) as server:
        first, second = ask(server, QUESTION, QUESTION, max_tokens=77)
    assert first.text == second.text == GOOD
    assert first.dropped == second.dropped == ("temperature", "max_tokens")
    assert len(server.requests) == 4
    for request in server.requests[2:]:
        assert "temperature" not in request.body
        assert (request.body["seed"], request.body["max_completion_tokens"]) == (0, 77)


def test_a_parameter_named_only_in_words():
    body = json.dumps({"object": "error", "message": "[{'loc': ('body', 'seed'), 'msg': 'Extra inputs are not permitted'}]", "code": 400})
    with ChatServer(raw(response(400, body.encode())), good()) as server:
        (answer,) = ask(server)
    assert answer.dropped == ("seed",)
    assert "seed" not in server.requests[1].body


# What is no answer


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (good("I'm", refusal="I cannot help with that."), "refused: I cannot help"),
        (good("1. Edit", finish="content_filter"), "content filter stopped"),
        (good(GOOD[:500], finish="length"), "cut off at 2048 tokens"),
        (status(400, "The response was filtered", code="content_filter"), "content filter refused the request"),
        (status(400, "Could not process image", code="invalid_image"), r"\(400\): .*Could not process image"),
        (status(400, "at most 4096, max_tokens are 9", code="context_length_exceeded"), "4096"),
        (status(413, "too large"), r"\(413\)"),
        (status(422, "no pictures"), r"\(422\)"),
    ],
)
def test_permanent_request_failures(reply, reason):
    with ChatServer(reply) as server:
        (answer,) = ask(server)
    assert re.search(reason, answer.failure or "")
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (status(429, "slow down", headers={"Retry-After": "3"}), "429.*slow down"),
        (status(500), "500"),
        (status(503, "loading"), "503.*loading"),
        (status(529, "overloaded"), "529"),
        (raw(response(502, b"<html>bad gateway</html>", {"Content-Type": "text/html"})), "502"),
        (raw(response(200, b'{"choices": [{"mess')), "not JSON"),
        (raw(response(200, b"<html>", {"Content-Type": "text/html"})), "not a chat completion"),
        (raw(response(200, b"{}")), "not a chat completion"),
        (raw(response(200, b"null")), "not a chat completion"),
        (raw(response(200, b'{"error": {"message": "provider is down"}}')), "provider is down"),
        (raw(response(200, b'{"choices": []}')), "not a chat completion"),
        (raw(response(200, b'{"choices": [{"index": 0}]}')), "not a chat completion"),
        (raw(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"), "no connection"),
        (dropped(), "no connection"),
        (dropped(60), "no connection"),
        (dropped(400), "no connection"),
    ],
)
def test_transient_server_errors(reply, reason):
    with ChatServer(reply) as server, pytest.raises(TransientError, match=reason) as caught:
        ask(server)
    assert len(server.requests) == 1
    if "429" in reason:
        assert caught.value.retry_after == 3


@pytest.mark.parametrize("reply", [hang(600.0), drip(2.0)])
def test_response_timeout_is_transient(reply):
    """Not at all, or byte by byte for ten minutes."""
    with ChatServer(reply) as server, pytest.raises(TransientError, match=r"no whole answer within 0\.3 s"):
        ask(server, time_limit=0.3)


def test_connection_refused_is_transient():
    with ChatServer() as server:
        pass
    with pytest.raises(TransientError, match="no connection"):
        ask(server)


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (status(401, f"Incorrect API key provided: {KEY}"), "rejects the key in OPENAI_API_KEY"),
        (status(403, f"Key {KEY[:12]} may not use it"), "may not use this model"),
        (status(404, "The model `gpt-4o` does not exist"), "does not exist.*Check the model's name"),
        (status(402, "credits"), "no credit left"),
        (status(429, "You exceeded your quota", code="insufficient_quota"), "no credit left"),
    ],
)
def test_errors_that_end_the_run(reply, words):
    """One clear error, after one request; the key is not in it."""
    with ChatServer(reply) as server, pytest.raises(InputError, match=words) as caught:
        ask(server)
    assert len(server.requests) == 1
    assert "sk-" not in str(caught.value)


def test_no_content_and_no_usage():
    with ChatServer(good(None, usage=None)) as server:
        (answer,) = ask(server)
    assert (answer.text, answer.failure) == ("", None)
    assert answer.tokens_in > 1000
    with ChatServer(good(GOOD, usage=None)) as server:
        assert ask(server)[0].tokens_out == len(GOOD) // 4


def test_retry_after_header_forms():
    assert retry_after({}) is None
    assert retry_after({"retry-after": "2"}) == 2
    assert retry_after({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    assert 500 < (retry_after({"retry-after": formatdate(time.time() + 600, usegmt=True)}) or 0) <= 600
    assert retry_after({"retry-after": formatdate(0, usegmt=True)}) == 0
    for nonsense in ("soon", "-1", "nan", "inf", ""):
        assert retry_after({"retry-after": nonsense}) is None
