"""A server under a thousand mixed requests, many of them faulty, and signals in the middle: each is answered or refused, none is lost."""

import asyncio
import base64
import io
import json
import random
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from tests.painter_fixtures import picture
from tests.serve_fixtures import TOKEN, colour
from tests.started import Started, started
from tests.test_serve import bomb, png

REQUESTS, AT_ONCE, KILLED_AFTER = 1000, 40, 500
HEAD = "POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Type: {kind}\r\n{more}\r\n"
SOURCE, BOMB = png(picture(40, 40)), bomb(8_000)


@dataclass
class Sent:
    """A request and what came of it.

    Attributes:
        expected: statuses; none where the client leaves before an answer.
        keep: bytes that are sent; None: all.
        began, ended: seconds.
        status: None without an answer.
    """

    kind: str
    data: bytes
    expected: tuple[int, ...]
    keep: int | None = None
    prompt: str = ""
    began: float = 0.0
    ended: float = 0.0
    status: int | None = None
    headers: str = ""
    body: bytes = b""


def form(image: bytes, **fields: str) -> bytes:
    parts = [f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode() for name, value in fields.items()]
    file = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n' + image
    return b"".join(parts) + file + b"\r\n--x--\r\n"


def edit(
    image: bytes = SOURCE, token: str = TOKEN, kind: str = "multipart/form-data; boundary=x", chunked: bool = False, **fields
) -> bytes:
    body = form(image, **fields)
    more = "Transfer-Encoding: chunked\r\n" if chunked else f"Content-Length: {len(body)}\r\n"
    if chunked:
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    return HEAD.format(path="/v1/images/edits", token=token, kind=kind, more=more).encode() + body


def generation(**fields: object) -> bytes:
    body = json.dumps(fields).encode()
    more = f"Content-Length: {len(body)}\r\n"
    return HEAD.format(path="/v1/images/generations", token=TOKEN, kind="application/json", more=more).encode() + body


def mixed(count: int) -> Iterator[Sent]:
    """Half of them are sound."""
    draw, large = random.Random(0), b"x" * 2**19
    for number in range(count):
        prompt = f"prompt {number}"
        made = [
            lambda prompt: Sent("edit", edit(prompt=prompt, seed="1"), (200, 429), prompt=prompt),
            lambda prompt: Sent("generation", generation(prompt=prompt, seed=1, n=draw.randint(1, 4)), (200, 429), prompt=prompt),
            lambda prompt: Sent("wrong token", edit(token="wrong", prompt=prompt), (401,)),
            lambda prompt: Sent("no picture", edit(b"nothing", prompt=prompt), (400, 429)),
            lambda prompt: Sent("torn picture", edit(SOURCE[:200], prompt=prompt), (400, 429)),
            lambda prompt: Sent("bomb", edit(BOMB, prompt=prompt), (413, 429)),
            lambda prompt: Sent("large", edit(large, prompt=prompt), (413, 429)),
            lambda prompt: Sent("large in chunks", edit(large, chunked=True, prompt=prompt), (413, 429)),
            lambda prompt: Sent("wrong type", edit(kind="text/plain", prompt=prompt), (415, 429)),
            lambda prompt: Sent("wrong field", generation(prompt=prompt, n="many"), (400, 429)),
            lambda prompt: Sent("cut", edit(prompt=prompt), (), keep=draw.randint(1, 1200)),
            lambda prompt: Sent("leaves", edit(prompt=prompt), (), keep=-1),
        ]
        weights = [6, 5, *[1] * (len(made) - 2)]
        yield draw.choices(made, weights)[0](prompt)


async def exchange(port: int, one: Sent) -> None:
    one.began = time.monotonic()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(one.data if one.keep in (None, -1) else one.data[: one.keep])
            await writer.drain()
            if one.keep is None:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = int(re.search(r"content-length: (\d+)", head)[1])
                one.body = await reader.readexactly(length)
                one.status, one.headers = int(head.split()[1]), head
            elif one.keep == -1:
                await asyncio.sleep(0.002)
        finally:
            writer.close()
    except (OSError, asyncio.IncompleteReadError):
        pass
    one.ended = time.monotonic()


async def get(port: int, path: str) -> str:
    """Head and body of an answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close\r\n\r\n".encode())
        return (await reader.read()).decode()
    finally:
        writer.close()


@contextmanager
def server(folder: Path, seconds: float, grace: float) -> Iterator[tuple[Started, int]]:
    """A running server and its port."""
    with started(folder / "log", [sys.executable, "-m", "tests.serve_fixtures", str(seconds), str(grace)]) as run:
        run.wait_until(lambda: "http://" in run.said())
        yield run, int(re.search(r"http://127.0.0.1:(\d+)", run.said())[1])


def test_a_thousand_requests_and_a_signal(tmp_path):
    sent = list(mixed(REQUESTS))
    killed = 0.0

    async def storm(run: Started, port: int) -> None:
        gate, done = asyncio.Semaphore(AT_ONCE), 0

        async def one(request: Sent) -> None:
            nonlocal done, killed
            async with gate:
                await exchange(port, request)
            done += 1
            if done == KILLED_AFTER:
                killed = time.monotonic()
                run.process.send_signal(signal.SIGTERM)

        await asyncio.gather(*(one(request) for request in sent))

    with server(tmp_path, 0.01, 10.0) as (run, port):
        asyncio.run(asyncio.wait_for(storm(run, port), 60))
        code, said = run.ended(30)
    assert code == 0, said
    assert "Traceback" not in said
    assert TOKEN not in said
    found = Counter[tuple[str, int | None]]()
    for one in sent:
        late = one.ended > killed
        found[one.kind, one.status] += 1
        if not one.expected:
            continue
        if one.status is None:
            assert one.began > killed, f"{one.kind} was lost"
        else:
            assert one.status in (*one.expected, *((503,) if late else ())), (one.kind, one.status, one.body)
        if one.status == 200:
            items = json.loads(one.body)["data"]
            pictures = [Image.open(io.BytesIO(base64.b64decode(item["b64_json"]))) for item in items]
            assert [image.getpixel((0, 0)) for image in pictures] == [colour(one.prompt, 1 + n) for n in range(len(items))]
        elif one.status is not None:
            assert json.loads(one.body)["error"]["message"]
        if one.status in (429, 503):
            assert int(re.search(r"retry-after: (\d+)", one.headers)[1]) >= 1
    statuses = Counter[int | None]()
    for (_, status), number in found.items():
        statuses[status] += number
    assert statuses[200] > 50, found
    assert {kind for kind, status in found if status == 413} == {"bomb", "large", "large in chunks"}


def test_what_is_queued_is_finished(tmp_path):
    async def both(run: Started, port: int) -> list[Sent]:
        requests = [Sent("generation", generation(prompt="a", n=4, seed=0), (200,)) for _ in range(4)]
        tasks = [asyncio.create_task(exchange(port, request)) for request in requests]
        while "dim_queue_pictures 12.0" not in await get(port, "/metrics"):  # the first of the four is being painted
            await asyncio.sleep(0.02)
        run.process.send_signal(signal.SIGTERM)
        while "503" not in (await get(port, "/health")).partition("\r\n")[0]:
            await asyncio.sleep(0.02)
        late = Sent("generation", generation(prompt="late"), (503,))
        await asyncio.gather(exchange(port, late), *tasks)
        return [*requests, late]

    with server(tmp_path, 2.0, 60.0) as (run, port):
        *requests, late = asyncio.run(asyncio.wait_for(both(run, port), 60))
        code, said = run.ended(30)
    assert code == 0, said
    assert [request.status for request in requests] == [200] * 4
    assert late.status == 503
    assert "SIGTERM: ending" in said


@pytest.mark.parametrize(("grace", "signals", "code"), [(0.2, 1, 0), (60.0, 2, 143)])
def test_a_batch_that_takes_too_long(tmp_path, grace, signals, code):
    """After the grace period its client is refused and the process ends well; at a second signal it ends at once."""

    async def one(run: Started, port: int) -> Sent:
        request = Sent("generation", generation(prompt="a"), (503,))
        task = asyncio.create_task(exchange(port, request))
        await asyncio.sleep(0.3)
        for _ in range(signals):
            run.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.1)
        await task
        return request

    with server(tmp_path, 300.0, grace) as (run, port):
        request = asyncio.run(one(run, port))
        assert run.ended(30)[0] == code, run.said()
    assert request.status == (503 if signals == 1 else None)
