"""Downloads files from many servers: few requests at once to each, with pauses and retries as servers ask."""

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

from dim_jax.designer.clients import TRANSIENT_STATUSES, retry_after
from dim_jax.designer.limits import Limits
from dim_jax.errors import InputError, require_packages
from dim_jax.storage.disk import NO_SPACE
from dim_jax.storage.folders import write_json

LONGEST_WAIT = 120.0  # seconds that a server may ask for before its file counts as failed


class DownloadError(Exception):
    """A file that cannot be downloaded; the message is the reason."""


class _TransientError(Exception):
    def __init__(self, reason: str, wait: float | None = None):
        super().__init__(reason)
        self.wait = wait


class _HostLimits:
    """The limits of a server: requests at the same time, and the start of the next one."""

    def __init__(self, at_once: int):
        self.slots = asyncio.Semaphore(at_once)
        self.next_start = 0.0


class Downloads:
    """A client for one run; use it in an `async with` statement. `settings` is the table [download] of the config."""

    def __init__(self, settings: Mapping[str, Any]):
        require_packages("httpx2", extra="construction", feature="Downloading")
        self._settings, self._hosts = settings, dict[str, _HostLimits]()
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
            raise DownloadError("not the address of a file")
        host = self._hosts.setdefault(urlsplit(url).netloc, _HostLimits(self._settings["per_host"]))
        async with host.slots:
            for tries in range(1, self._settings["tries"] + 1):
                await self._wait_for_slot(host)
                try:
                    data = await self._request(url, max_bytes)
                    break
                except _TransientError as error:
                    delay = self._backoff.backoff_seconds(tries)
                    delay = max(delay, min(error.wait or 0.0, LONGEST_WAIT))
                    host.next_start = max(host.next_start, asyncio.get_running_loop().time() + delay)
                    if tries == self._settings["tries"] or (error.wait or 0.0) > LONGEST_WAIT:
                        raise DownloadError(f"no file in {tries} tries: {error}") from error
        if sha256 and hashlib.sha256(data).hexdigest() != sha256.lower():
            raise DownloadError("the checksum is another than the published one")
        return data

    async def _wait_for_slot(self, host: _HostLimits) -> None:
        loop = asyncio.get_running_loop()
        start = max(loop.time(), host.next_start)
        host.next_start = start + self._settings["interval"]
        await asyncio.sleep(start - loop.time())

    async def _request(self, url: str, max_bytes: int) -> bytes:
        limit = self._settings["time_limit"]
        try:
            with _translated_errors():
                async with asyncio.timeout(limit), self._client.stream("GET", url) as response:
                    _check_status(response)
                    parts, size = [], 0
                    async for part in response.aiter_bytes():
                        parts.append(part)
                        if (size := size + len(part)) > max_bytes:
                            raise DownloadError(f"larger than {max_bytes:,} bytes")
                    return b"".join(parts)
        except TimeoutError as error:
            raise _TransientError(f"not whole within {limit:g} s") from error

    async def fetch(self, url: str, path: Path) -> None:
        """Download a large file to `path`. A partial file of an earlier try (`path` with ".partial") is continued if the server still has
        the same file.

        Raises:
            InputError: there is no such file, every try failed, the disk is full, or another run is fetching it. The partial file stays.
        """
        partial = path.with_name(f"{path.name}.partial")
        try:
            with partial.open("ab") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not partial.exists():  # another run has just renamed it
                    raise BlockingIOError
                for tries in range(1, self._settings["tries"] + 1):
                    try:
                        await self._append(url, file, _ResumeNote(path.with_name(f"{path.name}.partial.json")))
                        break
                    except (DownloadError, _TransientError) as error:
                        if isinstance(error, DownloadError) or tries == self._settings["tries"] or (error.wait or 0.0) > LONGEST_WAIT:
                            raise InputError(f"{url}: {error}. The partial file {partial} is kept; run the same command again.") from error
                        await asyncio.sleep(max(self._backoff.backoff_seconds(tries), error.wait or 0.0))
                partial.replace(path)
                _ResumeNote(path.with_name(f"{path.name}.partial.json")).forget()
        except BlockingIOError as error:
            raise InputError(f"{partial}: another run is fetching it. Wait for it.") from error
        except OSError as error:
            problem = "no space" if error.errno in NO_SPACE else "cannot be written"
            raise InputError(f"{partial}: {problem} ({error.strerror}). Correct that, then run the same command again.") from error

    async def _append(self, url: str, file: BinaryIO, note: "_ResumeNote") -> None:
        """Download the missing part of a file, or all of it if the partial one may be of another file.

        Raises:
            _TransientError: the answer has other bytes or fewer. The next try starts again or continues.
        """
        saved, size = note.read(), os.fstat(file.fileno()).st_size
        if saved and size == saved["total"]:
            return
        # A compressed answer could not be continued: its length is not that of the file.
        headers = {"Accept-Encoding": "identity"}
        if saved and size:
            headers |= {"Range": f"bytes={size}-", "If-Range": saved["validator"]}
        with _translated_errors():
            async with self._client.stream("GET", url, headers=headers) as response:
                if response.status_code in (206, 416) and not (saved and _continues(response.headers, size, saved)):
                    note.forget()
                    raise _TransientError("the server has another file than the partial one")
                _check_status(response)
                if response.status_code == 200:
                    file.truncate(0)
                    size, saved = 0, note.write(response.headers)
                async for part in response.aiter_bytes():
                    file.write(part)
                    file.flush()
                    size += len(part)
        if saved and saved["total"] is not None and size != saved["total"]:
            if size > saved["total"]:
                note.forget()
            raise _TransientError(f"{size:,} of {saved['total']:,} bytes came")


class _ResumeNote:
    """Identifies the file of a partial one, in a file beside it."""

    def __init__(self, path: Path):
        self._path = path

    def read(self) -> dict[str, Any] | None:
        """None: there is no valid note, so the file cannot be continued."""
        try:
            note = json.loads(self._path.read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        return note if isinstance(note, dict) and note.keys() == {"validator", "total"} else None

    def write(self, headers: Any) -> dict[str, Any] | None:
        """Save the headers that identify the file: a strong ETag, else Last-Modified, and the length."""
        self.forget()
        etag, length = headers.get("ETag", ""), headers.get("Content-Length", "")
        validator = etag if etag.startswith('"') else headers.get("Last-Modified")
        if not validator or headers.get("Content-Encoding", "identity") != "identity":
            return None
        note = {"validator": validator, "total": int(length) if length.isdecimal() else None}
        write_json(self._path, note, indent=None)
        return note

    def forget(self) -> None:
        self._path.unlink(missing_ok=True)


def _continues(headers: Any, size: int, saved: Mapping[str, Any]) -> bool:
    """Whether an answer continues the partial file, and is of the same file."""
    span = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", headers.get("Content-Range", ""))
    of_file = headers.get("ETag") if saved["validator"].startswith('"') else headers.get("Last-Modified", saved["validator"])
    if span is None or int(span[1]) != size or of_file != saved["validator"] or headers.get("Content-Encoding", "identity") != "identity":
        return False
    return span[3] == "*" or saved["total"] in (None, int(span[3]))


@contextmanager
def _translated_errors() -> Iterator[None]:
    """Turn errors of a connection into passing and final ones."""
    import httpx2

    try:
        yield
    except httpx2.InvalidURL as error:
        raise DownloadError("not the address of a file") from error
    except (httpx2.TooManyRedirects, httpx2.UnsupportedProtocol, httpx2.DecodingError) as error:
        raise DownloadError(f"the server misleads: {type(error).__name__}") from error
    except httpx2.HTTPError as error:
        raise _TransientError(f"no connection: {type(error).__name__}") from error


def _check_status(response: Any) -> None:
    status = response.status_code
    if status in TRANSIENT_STATUSES or status >= 500:
        raise _TransientError(f"the server answered {status}", retry_after(response.headers))
    if status not in (200, 206):
        raise DownloadError(f"the server answered {status}")
