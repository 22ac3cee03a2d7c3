"""What may come in to the page and go out of it: an ASGI application around Gradio's.

Gradio tells a browser where its files lie on this machine, and opens the file that a browser names. Here a browser may name only files
that it was given: what it uploaded, and what was shown to it. So no path and no address from a client is opened, and nobody sees the
picture of somebody else. A cookie tells browsers apart. Of Gradio's routes those are open that the page needs.
"""

import asyncio
import json
import re
import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dim_jax.serve.limits import Limits
from dim_jax.serve.uploads import ApiError, limit_receive, too_large
from dim_jax.storage.jsonl import json_loads

COOKIE = "dim_web"
API = "/gradio_api/"
OPEN = {
    "GET": re.compile(
        r"/|/config|/theme\.css|/favicon\.ico|/manifest\.json|/(?:assets|static)/.+"
        rf"|{API}(?:info|startup-events|theme\.css|queue/data|upload_progress|heartbeat/\w+|file=.+)"
    ),
    "POST": re.compile(rf"{API}(?:upload|queue/join|cancel|reset|component_server)/?"),
}
CLIENTS, NAMES = 1024, 4096  # the most browsers that are known, and files of each
# Nothing is fetched from elsewhere, and no other site shows the page.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self' data: blob:; worker-src 'self' blob:; frame-ancestors 'self'"
)


class Gate:
    """Lets requests through to `app` that name what their browser was given."""

    def __init__(self, app: ASGIApp, limits: Limits, common: Iterable[str], stopped: Callable[[], bool]):
        """`common`: the files that every browser may name. `stopped`: whether answers that go on for ever shall end."""
        self._app, self._limits, self._common, self._stopped = app, limits, frozenset(common), stopped
        self._allowed = OrderedDict[str, OrderedDict[str, None]]()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            try:
                await self._through(scope, receive, send)
            except ApiError as refused:
                await refused.response()(scope, receive, send)
        # Nothing here needs a WebSocket; the server refuses one that is not answered.

    async def _through(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope["path"], "GET" if scope["method"] == "HEAD" else scope["method"]
        if method not in OPEN or not OPEN[method].fullmatch(path):
            raise ApiError(404, "There is nothing at this address.")
        request = Request(scope, receive)
        client, known = request.cookies.get(COOKIE) or secrets.token_urlsafe(24), COOKIE in request.cookies
        allowed = self._names(client)
        if path.startswith(f"{API}file="):
            self._check({path.removeprefix(f"{API}file=")}, allowed)
        if method == "POST":
            receive = await self._body(request, allowed)
        else:
            receive = self._connected(receive)
        if path.startswith(API):  # what is compressed could not be read here
            scope = {**scope, "headers": [header for header in scope["headers"] if header[0] != b"accept-encoding"]}
        await self._app(scope, receive, _Answer(send, allowed, path, None if known else client))

    def _names(self, client: str) -> OrderedDict[str, None]:
        """The files that a browser may name."""
        allowed = self._allowed.setdefault(client, OrderedDict())
        self._allowed.move_to_end(client)
        if len(self._allowed) > CLIENTS:
            self._allowed.popitem(last=False)
        return allowed

    def _check(self, names: Iterable[str], allowed: Iterable[str]) -> None:
        if not self._common.union(allowed).issuperset(names):
            raise ApiError(403, "This browser was given no such file. Choose the picture again; cookies must be allowed.")

    def _connected(self, receive: Receive) -> Receive:
        """Says that the browser is gone, also where it is the server that goes."""

        async def listen() -> Message:
            message = asyncio.ensure_future(receive())
            try:
                while not (await asyncio.wait([message], timeout=0.5))[0]:
                    if self._stopped():
                        return {"type": "http.disconnect"}
                return message.result()
            finally:
                message.cancel()

        return listen

    async def _body(self, request: Request, allowed: Iterable[str]) -> Receive:
        """The body of a request once it is here and names nothing that it must not, for the application to read."""
        if int(request.headers.get("content-length") or 0) > self._limits.upload:
            raise too_large(self._limits)
        try:
            async with asyncio.timeout(self._limits.upload_seconds):
                body = await Request(request.scope, limit_receive(request.receive, self._limits)).body()
        except TimeoutError as late:
            raise ApiError(408, "The request took too long to arrive. Send it again.") from late
        if request.headers.get("content-type", "").startswith("application/json"):
            try:
                self._check(named(json_loads(body)), allowed)
            except ValueError as error:
                raise ApiError(400, "The request is no JSON.") from error
        elif not request.headers.get("content-type", "").startswith("multipart/form-data"):
            raise ApiError(415, "The request must be JSON or a form.")
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def replay() -> Message:
            return next(messages, None) or await request.receive()

        return replay


class _Answer:
    """Sends an answer on, notes the files that it names, and brings cookie and policy along."""

    def __init__(self, send: Send, allowed: OrderedDict[str, None], path: str, cookie: str | None):
        self._send, self._allowed, self._cookie = send, allowed, cookie
        self._read = path.removeprefix(API) in ("upload", "queue/data")
        self._rest = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [*message["headers"], (b"content-security-policy", POLICY.encode()), (b"x-content-type-options", b"nosniff")]
            if self._cookie:
                headers.append((b"set-cookie", f"{COOKIE}={self._cookie}; Path=/; HttpOnly; SameSite=Strict".encode()))
            message = {**message, "headers": headers}
        elif self._read:
            *lines, self._rest = (self._rest + message.get("body", b"")).split(b"\n")
            if not message.get("more_body"):
                lines.append(self._rest)
            events = [json.loads(line.removeprefix(b"data: ")) for line in lines if line[:1] in (b"d", b"[")]  # or the list of an upload
            for name in (name for event in events for name in named(event)):
                self._allowed[name] = None
                if len(self._allowed) > NAMES:
                    self._allowed.popitem(last=False)
        await self._send(message)


def named(value: Any) -> Iterator[str]:
    """The paths in what Gradio writes or reads: the values of `path`, or the texts of a list, as the answer to an upload is."""
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        yield from value
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        if key == "path" and isinstance(part, str):
            yield part
        else:
            yield from named(part)
