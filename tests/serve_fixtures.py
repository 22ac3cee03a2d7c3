"""A server of images without a network that paints: what the tests of `dim serve` share.

`python -m tests.serve_fixtures SECONDS GRACE` serves until a signal ends it, and prints its address; a batch takes so many seconds.
"""

import hashlib
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict

from PIL import Image

from dim_jax.batching import Request
from dim_jax.edit_result import EditResult
from dim_jax.errors import InputError
from dim_jax.serve.blueprints import BlueprintWriter
from dim_jax.serve.engine import Engine, Paint
from dim_jax.serve.jobs import ModelInfo
from dim_jax.serve.limits import Limits
from dim_jax.serve.running import Server, log_to_stderr, serve
from dim_jax.serve.server import Service
from dim_jax.serve.tickets import Ticket
from dim_jax.settings import Settings

SETTINGS = Settings(num_steps=2, resolution=64)
MODEL = ModelInfo("fake", SETTINGS, 8, True)
TOKEN = "secret-of-the-tests"
BAD = "a prompt that cannot be used"


def colour(prompt: str, seed: int) -> tuple[int, int, int]:
    """What `painting` paints, so that nobody can get another one's picture unnoticed."""
    red, green, blue = hashlib.sha256(f"{prompt}{seed}".encode()).digest()[:3]
    return red, green, blue


def painting(seconds: float = 0.0, before: Callable[[Sequence[Request]], None] = lambda requests: None) -> Paint:
    """One colour for prompt and seed; a batch takes so long, and `before` is called with it."""

    def paint(requests: Sequence[Request], settings: Settings) -> Iterator[tuple[int, EditResult]]:
        before(requests)
        time.sleep(seconds)
        for i, request in enumerate(requests):
            if request.prompt == BAD:
                raise InputError(f"Prompt {i + 1} cannot be used.")
            height, width = request.size
            image = request.result(Image.new("RGB", (width, height), colour(request.prompt, request.seed)))
            used = asdict(settings) | {"size": request.size}
            yield i, EditResult(image, request.prompt, request.seed, used, "/a/path/of/this/machine", "float32")

    return paint


class Gate:
    """A painter's first batch waits here, until the test has queued what it wants to."""

    def __init__(self):
        self.batches = list[list[str]]()
        self.entered, self.opened = threading.Event(), threading.Event()

    def __call__(self, batch: Sequence[Request]) -> None:
        self.batches.append([request.prompt for request in batch])
        self.entered.set()
        assert self.opened.wait(60)

    def first(self, made: Engine) -> Ticket:
        """A picture that is being painted from now on."""
        ticket = made.submit([Request("first", 0, (64, 64))], SETTINGS)
        assert self.entered.wait(60)
        return ticket


def written(calls: int) -> tuple[BlueprintWriter, list[list[str]]]:
    """A designer, and what it was asked: the instructions of each call."""
    asked = list[list[str]]()

    def write(pictures, instructions):
        assert len(pictures) == len(instructions)
        asked.append(list(instructions))
        return [None if one == "refuse" else f"blueprint of {one}" for one in instructions]

    return BlueprintWriter("writer", write, calls), asked


@contextmanager
def engine(paint: Paint, grace: float = 10.0, **options) -> Iterator[Engine]:
    made = Engine(paint, **options)
    try:
        yield made
    finally:
        made.stop(grace)


@contextmanager
def serving(
    paint: Paint, *, tokens: Sequence[str] = (), limits: Limits | None = None, model: ModelInfo = MODEL, **options
) -> Iterator[str]:
    """The address of a server in this process; options as those of `Engine`."""
    writer = options.get("writer")
    with engine(paint, **options) as made, socket.create_server(("127.0.0.1", 0)) as listener:
        server = Server(Service(made, model, limits or Limits(), tokens, designer=writer and writer.name), 0.0)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


if __name__ == "__main__":
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listening:
        log_to_stderr()
        slow = Engine(painting(float(sys.argv[1])), queue=24, wait=0.002)
        print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
        serve(Service(slow, MODEL, Limits(upload=2**18, pixels=2**20), (TOKEN,)), listening, float(sys.argv[2]))
