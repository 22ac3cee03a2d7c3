"""A local server that speaks chat completions, well or badly, for the tests of the designer. Standard library only.

    with ChatServer(status(429, headers={"Retry-After": "1"}), good()) as server:
        ...  # the first request is refused, the second and all others are answered

A reply is a function of the request that yields what is sent. `python -m tests.chat_server` serves
good answers until it is killed, and prints its port.
"""

import base64
import itertools
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.designer_answers import GOOD
from tests.local_server import LocalServer

WORDS = {200: "OK", 429: "Too Many Requests"}


@dataclass(frozen=True)
class Request:
    """What a client sent, and when."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    time: float = field(default_factory=time.monotonic)

    @property
    def text(self) -> str:
        return self.body["messages"][0]["content"][-1]["text"]

    @property
    def pictures(self) -> list[bytes]:
        urls = [part["image_url"]["url"] for part in self.body["messages"][0]["content"][:-1]]
        return [base64.b64decode(url.partition(",")[2]) for url in urls]

    @property
    def picture(self) -> bytes:
        (picture,) = self.pictures
        return picture


Reply = Callable[[Request], Iterator[bytes]]


def response(code: int, body: bytes, headers: dict[str, str] | None = None) -> bytes:
    fields = {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {code} {WORDS.get(code, 'Status')}\r\n{head}\r\n".encode() + body


def completion(text: str | None, *, finish: str = "stop", refusal: str | None = None, usage: tuple[int, int] | None = (1000, 100)) -> bytes:
    message = {"role": "assistant", "content": text, "refusal": refusal}
    body: dict[str, Any] = {"id": "x", "object": "chat.completion", "created": 1, "model": "m"}
    body["choices"] = [{"index": 0, "message": message, "finish_reason": finish}]
    if usage:
        body["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    return json.dumps(body).encode()


def good(text: str | None = GOOD, *, after: float = 0.0, **options: Any) -> Reply:
    def reply(request: Request) -> Iterator[bytes]:
        time.sleep(after)
        yield response(200, completion(text, **options))

    return reply


def status(number: int, message: str = "no", *, headers: dict[str, str] | None = None, **fields: Any) -> Reply:
    body = json.dumps({"error": {"message": message, **fields}}).encode()
    return raw(response(number, body, headers))


def raw(data: bytes) -> Reply:
    return lambda request: iter([data])


def dropped(after: int = 0) -> Reply:
    """Close the connection after so many bytes of a good answer."""

    def reply(request: Request) -> Iterator[bytes]:
        yield response(200, completion(GOOD))[:after]
        raise ConnectionError

    return reply


def drip(interval: float) -> Reply:
    """A good answer, byte by byte."""

    def reply(request: Request) -> Iterator[bytes]:
        for byte in response(200, completion(GOOD)):
            time.sleep(interval)
            yield bytes([byte])

    return reply


def hang(seconds: float) -> Reply:
    return good(after=seconds)


class Turnstile:
    """Gives `reply` to the first `opened` requests; those after wait until more are let in. However fast or slow, nobody gets further."""

    def __init__(self, reply: Reply, opened: int):
        self.opened = opened
        self._reply, self._numbers = reply, itertools.count()

    def __call__(self, request: Request) -> Iterator[bytes]:
        number = next(self._numbers)
        while number >= self.opened:
            time.sleep(0.005)
        yield from self._reply(request)


class ChatServer(LocalServer):
    """Answers requests with `replies` in order, then with the last of them; keeps what was asked."""

    def __init__(self, *replies: Reply):
        super().__init__(_handler(self))
        self.url += "/v1"
        self.replies = list(replies) or [good()]
        self.requests: list[Request] = []

    def take(self, request: Request) -> Reply:
        with self.lock:
            reply = self.replies[min(len(self.requests), len(self.replies) - 1)]
            self.requests.append(request)
            self.began()
        return reply


def _handler(server: ChatServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            request = Request(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
            reply = server.take(request)
            try:
                for part in reply(request):
                    self.wfile.write(part)
            except OSError:  # one of the two has gone
                self.close_connection = True
            finally:
                server.done()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    return Handler


if __name__ == "__main__":
    with ChatServer(good(after=float(sys.argv[1]) if len(sys.argv) > 1 else 0.0)) as serving:
        print(serving.url, flush=True)
        threading.Event().wait()
