"""A local server of files, good and bad, for the tests of downloads. Standard library only.

    with PictureServer({"/a.png": data, "/gone.png": 404, "/busy.png": [503, data]}) as server:
        ...  # server.url + "/busy.png" is refused once and then served

A file is its bytes, a status, a number of seconds to wait before nothing comes, what makes status, body and headers of those of a request
(a body that is shorter than it says breaks off), or a list of these, one a request, the last for all others.
Ranges are served. `server.requests` keeps path and time of each request.
"""

import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.local_server import LocalServer

Reply = tuple[int, bytes, dict[str, str]]
File = bytes | int | float | Callable[[Any], Reply]


class PictureServer(LocalServer):
    def __init__(self, files: dict[str, Any], headers: dict[str, str] | None = None):
        super().__init__(_handler(self))
        self.files, self.headers = files, headers or {}
        self.requests: list[tuple[str, float]] = []
        self.agents = set[str]()

    def take(self, path: str) -> File:
        with self.lock:
            self.requests.append((path, time.monotonic()))
            self.began()
            file = self.files.get(path, 404)
            if isinstance(file, list):
                return file[min(sum(one == path for one, _ in self.requests), len(file)) - 1]
            return file


def _handler(server: PictureServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            server.agents.add(self.headers["User-Agent"])
            file = server.take(self.path)
            try:
                if isinstance(file, float):
                    time.sleep(file)
                    self.close_connection = True
                elif callable(file):
                    self._send(*file(self.headers))
                elif isinstance(file, int):
                    self._send(file, b"no", server.headers)
                else:
                    start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
                    self._send(206 if start else 200, file[start:], {})
            except OSError:
                self.close_connection = True
            finally:
                server.done()

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            headers = {"Content-Length": str(len(body)), **headers}
            for name, value in headers.items():
                self.send_header(name, value)
            self.close_connection = headers["Content-Length"] != str(len(body))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    return Handler
