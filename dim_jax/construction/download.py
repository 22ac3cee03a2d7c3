"""Files from many servers, politely: few requests at once to each, spaced, tried again where it helps, as servers ask."""

import asyncio
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dim_jax.designer.clients import PASSING, retry_after
from dim_jax.designer.pace import Limits
from dim_jax.errors import InputError, require
from dim_jax.space import NO_SPACE

LONGEST_WAIT = 120.0  # seconds that a server may ask for before its file counts as failed
CHUNK = 2**20


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
        import httpx2

        limit = self._settings["time_limit"]
        try:
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
        except httpx2.InvalidURL as error:
            raise DownloadError("no address of a file") from error
        except (httpx2.TooManyRedirects, httpx2.UnsupportedProtocol, httpx2.DecodingError) as error:
            raise DownloadError(f"the server misleads: {type(error).__name__}") from error
        except httpx2.HTTPError as error:
            raise _PassingError(f"no connection: {type(error).__name__}") from error

    async def fetch(self, url: str, path: Path) -> None:
        """A large file to `path`: what a try before left in `path` with ".partial" is continued where the server can.

        Raises:
            InputError: there is no such file, every try failed, or the disk is full. What came is kept.
        """
        partial = path.with_name(f"{path.name}.partial")
        for tries in range(1, self._settings["tries"] + 1):
            try:
                await self._append(url, partial)
                partial.replace(path)
                return
            except (DownloadError, _PassingError) as error:
                if isinstance(error, DownloadError) or tries == self._settings["tries"] or (error.wait or 0.0) > LONGEST_WAIT:
                    raise InputError(f"{url}: {error}. What came lies in {partial}; run the same command again.") from error
                await asyncio.sleep(max(self._backoff.wait(tries), error.wait or 0.0))
            except OSError as error:
                if error.errno not in NO_SPACE:
                    raise
                raise InputError(f"{partial}: no space ({error.strerror}). Free some, then run the same command again.") from error

    async def _append(self, url: str, partial: Path) -> None:
        import httpx2

        done = partial.stat().st_size if partial.exists() else 0
        headers = {"Range": f"bytes={done}-"} if done else {}
        try:
            async with self._client.stream("GET", url, headers=headers) as response:
                if response.status_code == 416:  # nothing is left
                    return
                _check(response)
                with partial.open("ab" if response.status_code == 206 else "wb") as file:
                    async for part in response.aiter_bytes(CHUNK):
                        file.write(part)
        except httpx2.HTTPError as error:
            raise _PassingError(f"no connection: {type(error).__name__}") from error


def _check(response: Any) -> None:
    status = response.status_code
    if status in PASSING or status >= 500:
        raise _PassingError(f"the server answered {status}", retry_after(response.headers))
    if status not in (200, 206):
        raise DownloadError(f"the server answered {status}")
