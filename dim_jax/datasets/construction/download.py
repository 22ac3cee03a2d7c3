"""Files from many servers, politely: few requests at once to each, spaced, tried again where it helps, as servers ask."""

import asyncio
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from dim_jax.designer.clients import PASSING, retry_after
from dim_jax.designer.limits import Limits
from dim_jax.errors import InputError, require
from dim_jax.storage.disk import NO_SPACE
from dim_jax.storage.folders import new_file

LONGEST_WAIT = 120.0  # seconds that a server may ask for before its file counts as failed


class DownloadError(Exception):
    """A file that cannot be had; the message is the reason."""


class _PassingError(Exception):
    def __init__(self, reason: str, wait: float | None = None):
        super().__init__(reason)
        self.wait = wait


class _Host:
    """What is known of a server: how many requests it may have, and when the next may start."""

    def __init__(self, at_once: int):
        self.free = asyncio.Semaphore(at_once)
        self.next = 0.0


class Downloads:
    """A client for one run; use it in an `async with` statement. `settings` is the table [download] of the config."""

    def __init__(self, settings: Mapping[str, Any]):
        require("httpx2", extra="construction", what="Downloading")
        self._settings, self._hosts = settings, dict[str, _Host]()
        self._backoff = Limits(tries=settings["tries"], backoff=settings["interval"] or 0.1)

    async def __aenter__(self) -> "Downloads":
        import httpx2

        self._client = httpx2.AsyncClient(
            headers={"User-Agent": self._settings["user_agent"]}, follow_redirects=True, timeout=self._settings["time_limit"],
            limits=httpx2.Limits(max_connections=self._settings["concurrency"]),
        )  # fmt: skip
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def get(self, url: str, max_bytes: int, sha256: str | None = None) -> bytes:
        """The bytes at an address.

        Raises:
            DownloadError: there is no such file, it is too large or has another checksum, or every try failed.
        """
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise DownloadError("no address of a file")
        host = self._hosts.setdefault(urlsplit(url).netloc, _Host(self._settings["per_host"]))
        async with host.free:
            for tries in range(1, self._settings["tries"] + 1):
                await self._turn(host)
                try:
                    data = await self._once(url, max_bytes)
                    break
                except _PassingError as error:
                    wait = self._backoff.wait(tries)
                    host.next = max(host.next, asyncio.get_running_loop().time() + max(wait, min(error.wait or 0.0, LONGEST_WAIT)))
                    if tries == self._settings["tries"] or (error.wait or 0.0) > LONGEST_WAIT:
                        raise DownloadError(f"no file in {tries} tries: {error}") from error
        if sha256 and hashlib.sha256(data).hexdigest() != sha256.lower():
            raise DownloadError("the checksum is another than the published one")
        return data

    async def _turn(self, host: _Host) -> None:
        loop = asyncio.get_running_loop()
        start = max(loop.time(), host.next)
        host.next = start + self._settings["interval"]
        await asyncio.sleep(start - loop.time())

    async def _once(self, url: str, max_bytes: int) -> bytes:
        limit = self._settings["time_limit"]
        try:
            with _connected():
                async with asyncio.timeout(limit), self._client.stream("GET", url) as response:
                    _check(response)
                    parts, size = [], 0
                    async for part in response.aiter_bytes():
                        parts.append(part)
                        if (size := size + len(part)) > max_bytes:
                            raise DownloadError(f"larger than {max_bytes:,} bytes")
                    return b"".join(parts)
        except TimeoutError as error:
            raise _PassingError(f"not whole within {limit:g} s") from error

    async def fetch(self, url: str, path: Path) -> None:
        """A large file to `path`: what a try before left in `path` with ".partial" is continued, if the server says that it is still of
        the same file.

        Raises:
            InputError: there is no such file, every try failed, the disk is full, or another run is fetching it. What came is kept.
        """
        partial = path.with_name(f"{path.name}.partial")
        try:
            with partial.open("ab") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not partial.exists():  # it has just become the file
                    raise BlockingIOError
                for tries in range(1, self._settings["tries"] + 1):
                    try:
                        await self._append(url, file, _Note(path.with_name(f"{path.name}.partial.json")))
                        break
                    except (DownloadError, _PassingError) as error:
                        if isinstance(error, DownloadError) or tries == self._settings["tries"] or (error.wait or 0.0) > LONGEST_WAIT:
                            raise InputError(f"{url}: {error}. What came lies in {partial}; run the same command again.") from error
                        await asyncio.sleep(max(self._backoff.wait(tries), error.wait or 0.0))
                partial.replace(path)
                _Note(path.with_name(f"{path.name}.partial.json")).forget()
        except BlockingIOError as error:
            raise InputError(f"{partial}: another run is fetching it. Wait for it.") from error
        except OSError as error:
            what = "no space" if error.errno in NO_SPACE else "cannot be written"
            raise InputError(f"{partial}: {what} ({error.strerror}). Mend that, then run the same command again.") from error

    async def _append(self, url: str, file: BinaryIO, note: "_Note") -> None:
        """What is missing of a file; anew, where what is there may be of another one.

        Raises:
            _PassingError: something else came than was asked for, or less. The next try begins anew, or goes on.
        """
        known, done = note.read(), os.fstat(file.fileno()).st_size
        if known and done == known["total"]:
            return
        # Encoded bytes could not be continued: their number is not that of the bytes that are kept.
        headers = {"Accept-Encoding": "identity"}
        if known and done:
            headers |= {"Range": f"bytes={done}-", "If-Range": known["validator"]}
        with _connected():
            async with self._client.stream("GET", url, headers=headers) as response:
                if response.status_code in (206, 416) and not (known and _continues(response.headers, done, known)):
                    note.forget()
                    raise _PassingError("another file came than the one that was begun")
                _check(response)
                if response.status_code == 200:
                    file.truncate(0)
                    done, known = 0, note.write(response.headers)
                async for part in response.aiter_bytes():
                    file.write(part)
                    file.flush()
                    done += len(part)
        if known and known["total"] is not None and done != known["total"]:
            if done > known["total"]:
                note.forget()
            raise _PassingError(f"{done:,} of {known['total']:,} bytes came")


class _Note:
    """Which file a partial one is of, in a file beside it."""

    def __init__(self, path: Path):
        self._path = path

    def read(self) -> dict[str, Any] | None:
        """None: nothing is known, so it cannot be continued."""
        try:
            note = json.loads(self._path.read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        return note if isinstance(note, dict) and note.keys() == {"validator", "total"} else None

    def write(self, headers: Any) -> dict[str, Any] | None:
        """Keep what an answer says of its file: a strong ETag, else the time of its last change, and how long it is."""
        self.forget()
        etag, length = headers.get("ETag", ""), headers.get("Content-Length", "")
        validator = etag if etag.startswith('"') else headers.get("Last-Modified")
        if not validator or headers.get("Content-Encoding", "identity") != "identity":
            return None
        note = {"validator": validator, "total": int(length) if length.isdecimal() else None}
        with new_file(self._path) as scratch:
            scratch.write_text(json.dumps(note))
        return note

    def forget(self) -> None:
        self._path.unlink(missing_ok=True)


def _continues(headers: Any, done: int, known: Mapping[str, Any]) -> bool:
    """Whether an answer goes on where the file ends, and is of the same file."""
    span = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", headers.get("Content-Range", ""))
    of_file = headers.get("ETag") if known["validator"].startswith('"') else headers.get("Last-Modified", known["validator"])
    if span is None or int(span[1]) != done or of_file != known["validator"] or headers.get("Content-Encoding", "identity") != "identity":
        return False
    return span[3] == "*" or known["total"] in (None, int(span[3]))


@contextmanager
def _connected() -> Iterator[None]:
    """Errors of a connection, as those that pass and those that do not."""
    import httpx2

    try:
        yield
    except httpx2.InvalidURL as error:
        raise DownloadError("no address of a file") from error
    except (httpx2.TooManyRedirects, httpx2.UnsupportedProtocol, httpx2.DecodingError) as error:
        raise DownloadError(f"the server misleads: {type(error).__name__}") from error
    except httpx2.HTTPError as error:
        raise _PassingError(f"no connection: {type(error).__name__}") from error


def _check(response: Any) -> None:
    status = response.status_code
    if status in PASSING or status >= 500:
        raise _PassingError(f"the server answered {status}", retry_after(response.headers))
    if status not in (200, 206):
        raise DownloadError(f"the server answered {status}")
