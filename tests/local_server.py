"""What the local servers of the tests have in common: a port, threads, and how many requests they had at once."""

import socket
import socketserver
import threading
from http.server import BaseHTTPRequestHandler
from typing import Self


class LocalServer:
    """Serves in a `with` statement; a handler calls `began` and `done`."""

    def __init__(self, handler: type[BaseHTTPRequestHandler]):
        self.most_at_once = self._at_once = 0
        self.lock = threading.Lock()
        self._server = _Threads(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def began(self) -> None:
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)

    def done(self) -> None:
        with self.lock:
            self._at_once -= 1


class _Threads(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
    block_on_close = False
    request_queue_size = 128


def free_port() -> int:
    """A port that nothing listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
