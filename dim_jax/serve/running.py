"""A server from its first request to a signal that ends it, which loses nothing that was accepted."""

import logging
import os
import signal
import socket
import sys
import threading
from types import FrameType
from typing import Protocol, runtime_checkable

import uvicorn
from starlette.types import ASGIApp

from dim_jax.serve.engine import Engine

LAST_ANSWERS = 5  # seconds for what is still being sent when everything is painted


@runtime_checkable
class Service(Protocol):
    """What is served: `server.Service`, or a page."""

    engine: Engine

    def app(self) -> ASGIApp:
        """The ASGI application."""
        ...


class Server(uvicorn.Server):
    """Serves until SIGTERM or Ctrl-C: then it refuses what is new, finishes what it has within `grace` seconds, and ends. A second signal
    ends the process at once."""

    def __init__(self, service: Service, grace: float):
        config = uvicorn.Config(
            service.app(), log_config=None, access_log=False, lifespan="auto", server_header=False, timeout_graceful_shutdown=LAST_ANSWERS
        )  # fmt: skip
        super().__init__(config)
        self._engine, self._grace, self._signal = service.engine, grace, 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._signal:
            os._exit(128 + sig)
        self._signal = sig
        name, waiting = signal.Signals(sig).name, len(self._engine.queue)
        print(f"{name}: ending, {waiting} pictures wait; a second signal ends at once", file=sys.stderr, flush=True)
        threading.Thread(target=self._stop, name="stopping", daemon=True).start()

    def _stop(self) -> None:
        self._engine.stop(self._grace)
        self.should_exit = True


def log_to_stderr() -> None:
    """A line for each request, and the traceback of what failed; addresses of ours and statuses, nothing that a client sent."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    for name, level in (("dim_jax.serve", logging.INFO), ("dim_jax.web", logging.INFO), ("uvicorn.error", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.addHandler(handler)
        logger.propagate = False  # libraries give the root logger a handler of its own, and a line would be there twice


def serve(service: Service, listener: socket.socket, grace: float = 30.0) -> None:
    """Answer what comes to a listening socket, until a signal ends it.

    A batch that is painted beyond the grace period ends with the process, which leaves here then with exit code 0.
    """
    Server(service, grace).run(sockets=[listener])
    if not service.engine.stop():
        sys.stderr.flush()
        os._exit(0)  # a thread within XLA lets no interpreter end in peace
