"""Downloads from a local server: what is tried again and what not, how politely, and large files that are continued."""

import asyncio
import fcntl
import gzip
import hashlib
import time

import pytest

from dim_jax.datasets.construction.download import DownloadError, Downloads
from dim_jax.errors import InputError
from tests.picture_server import PictureServer

SETTINGS = {"concurrency": 8, "per_host": 2, "interval": 0.01, "tries": 3, "time_limit": 60.0, "user_agent": "test (mail@example.org)"}


def get(*urls: str, max_bytes: int = 10_000, sha256: str | None = None, **changes) -> list[bytes | str]:
    """The files, or why there are none."""

    async def one(downloads: Downloads, url: str) -> bytes | str:
        try:
            return await downloads.get(url, max_bytes, sha256)
        except DownloadError as error:
            return str(error)

    async def together() -> list[bytes | str]:
        async with Downloads({**SETTINGS, **changes}) as downloads:
            return await asyncio.gather(*(one(downloads, url) for url in urls))

    return asyncio.run(together())


@pytest.mark.parametrize(
    ("file", "found", "requests"),
    [
        (b"data", b"data", 1), ([503, b"data"], b"data", 2), ([429, 500, b"data"], b"data", 3),
        ([0.0, b"data"], b"data", 2), (404, "the server answered 404", 1), (403, "the server answered 403", 1),
        (503, "no file in 3 tries: the server answered 503", 3), (b"x" * 20_000, "larger than 10,000 bytes", 1),
    ],
    ids=["good", "503", "429, 500", "drops", "404", "403", "always 503", "large"],
)  # fmt: skip
def test_download_retries_and_errors(file, found, requests):
    with PictureServer({"/a.png": file}) as server:
        assert get(f"{server.url}/a.png") == [found]
    assert len(server.requests) == requests
    assert server.agents == {"test (mail@example.org)"}


def test_a_server_that_never_answers():
    with PictureServer({"/a.png": 600.0}) as server:
        assert get(f"{server.url}/a.png", time_limit=0.2) == ["no file in 3 tries: not whole within 0.2 s"]


def test_unreachable_server_and_invalid_url():
    with PictureServer({}) as server:
        pass
    gone, *others = get(f"{server.url}/a.png", "ftp://a/b.png", "a/b.png", "", "http://", tries=2)
    assert str(gone).startswith("no file in 2 tries: no connection")
    assert others == ["not the address of a file"] * 4


def test_checksums():
    right, wrong = hashlib.sha256(b"data").hexdigest(), hashlib.sha256(b"other").hexdigest()
    with PictureServer({"/a": b"data"}) as server:
        assert get(f"{server.url}/a", sha256=right.upper()) == [b"data"]
        assert get(f"{server.url}/a", sha256=wrong) == ["the checksum is another than the published one"]


def test_per_host_concurrency_and_interval():
    with PictureServer({f"/{i}": b"data" for i in range(12)}) as server:
        start = time.monotonic()
        assert get(*(f"{server.url}/{i}" for i in range(12)), interval=0.05) == [b"data"] * 12
    assert server.most_at_once <= 2
    assert all(at - start >= 0.05 * number for number, (_, at) in enumerate(server.requests))


def test_retry_after_holds_for_the_whole_server():
    files = {"/a": [429, b"data"], "/b": b"data"}
    with PictureServer(files, {"Retry-After": "0.5"}) as server:
        assert get(f"{server.url}/a", f"{server.url}/b", per_host=1) == [b"data", b"data"]
    times = [at for _, at in server.requests]
    assert times[1] - times[0] > 0.45
    with PictureServer({"/a": 429}, {"Retry-After": "3600"}) as server:
        assert "in 1 tries" in str(get(f"{server.url}/a")[0])


@pytest.mark.parametrize("wait", ["86400", "9" * 400])
def test_retry_after_over_limit_fails(wait, tmp_path):
    async def fetch(url: str) -> None:
        async with Downloads(SETTINGS) as downloads:
            await downloads.fetch(url, tmp_path / "big.zip")

    with PictureServer({"/a": 429}, {"Retry-After": wait}) as server, pytest.raises(InputError, match="server answered 429"):
        asyncio.run(fetch(f"{server.url}/a"))
    assert len(server.requests) == 1


def test_a_large_file_is_continued(tmp_path):
    data, path = bytes(range(256)) * 40, tmp_path / "big.zip"
    (tmp_path / "big.zip.partial").write_bytes(data[:5000])

    async def fetch(url: str) -> None:
        async with Downloads(SETTINGS) as downloads:
            await downloads.fetch(url, path)

    with PictureServer({"/big.zip": [500, data], "/none": 404}) as server:
        asyncio.run(fetch(f"{server.url}/big.zip"))
        assert path.read_bytes() == data
        assert not path.with_name("big.zip.partial").exists()
        with pytest.raises(InputError, match="/none: the server answered 404"):
            asyncio.run(fetch(f"{server.url}/none"))
    assert len(server.requests) == 3


OLD, NEW = bytes(range(256)) * 40, bytes(reversed(range(256))) * 40
STRONG, WEAK, DATED = {"ETag": '"1"'}, {"ETag": 'W/"1"'}, {"ETag": 'W/"1"', "Last-Modified": "Sun, 01 Nov 2026 00:00:00 GMT"}


def begun(data: bytes = OLD, size: int = 5000, **more: str):
    """An answer that breaks off."""
    return lambda headers: (200, data[:size], {"Content-Length": str(len(data)), **more})


def ranged(data: bytes, *, honest: bool = True, shift: int = 0, total: int | None = None, **more: str):
    """A server that serves ranges; one that is not `honest` does not look at If-Range."""

    def reply(headers):
        assert headers["Accept-Encoding"] == "identity"
        same = headers.get("If-Range") in more.values() or not honest
        if headers["Range"] is None or not same:
            return 200, data, more
        start = int(headers["Range"].removeprefix("bytes=").removesuffix("-")) + shift
        if start >= len(data):
            return 416, b"", {"Content-Range": f"bytes */{len(data)}", **more}
        return 206, data[start:], {"Content-Range": f"bytes {start}-{len(data) - 1}/{total or len(data)}", **more}

    return reply


CHANGED = {"ETag": '"2"'}
TROUBLES = {
    "goes on": ([begun(**STRONG), ranged(OLD, **STRONG)], OLD, 2),
    "goes on by date": ([begun(**DATED), ranged(OLD, **DATED)], OLD, 2),
    "changed": ([begun(**STRONG), ranged(NEW, **CHANGED)], NEW, 2),
    "changed, If-Range ignored": ([begun(**STRONG), ranged(NEW, honest=False, **CHANGED)], NEW, 3),
    "changed, without a word": ([begun(**STRONG), ranged(NEW, honest=False)], NEW, 3),
    "only a weak tag": ([begun(**WEAK), ranged(NEW, honest=False, **WEAK)], NEW, 2),
    "nothing said": ([begun(), ranged(NEW, honest=False)], NEW, 2),
    "shorter now": ([begun(**STRONG), ranged(NEW[:100], honest=False, **STRONG)], NEW[:100], 3),
    "another place": ([begun(**STRONG), ranged(OLD, shift=7, **STRONG), ranged(OLD, **STRONG)], OLD, 3),
    "another total": ([begun(**STRONG), ranged(OLD, total=99_999, **STRONG), ranged(OLD, **STRONG)], OLD, 3),
    "ranges ignored": ([begun(**STRONG), lambda headers: (200, NEW, CHANGED)], NEW, 2),
    "encoded": ([lambda headers: (200, gzip.compress(OLD), {"Content-Encoding": "gzip", **STRONG})], OLD, 1),
    "encoded, breaks off": ([begun(gzip.compress(OLD), 90, **STRONG, **{"Content-Encoding": "gzip"}), ranged(OLD, **STRONG)], OLD, 2),
}


def fetched(path, file) -> int:
    """Fetches it; how many requests that took."""

    async def fetch(url: str) -> None:
        async with Downloads({**SETTINGS, "interval": 0.0}) as downloads:
            await downloads.fetch(url, path)

    with PictureServer({"/big.zip": file}) as server:
        asyncio.run(fetch(f"{server.url}/big.zip"))
        return len(server.requests)


@pytest.mark.parametrize("trouble", TROUBLES)
def test_interrupted_fetch_never_mixes_two_files(tmp_path, trouble):
    file, wanted, requests = TROUBLES[trouble]
    path = tmp_path / "big.zip"
    assert fetched(path, file) == requests
    assert path.read_bytes() == wanted
    assert [one.name for one in tmp_path.iterdir()] == ["big.zip"]


@pytest.mark.parametrize("now", [OLD, NEW], ids=["the same", "changed"])
def test_later_run_resumes_only_the_same_file(tmp_path, now):
    path = tmp_path / "big.zip"
    with pytest.raises(InputError, match="run the same command again"):
        fetched(path, [begun(**STRONG), 404])
    assert path.with_name("big.zip.partial").read_bytes() == OLD[:5000]
    tag = STRONG if now == OLD else CHANGED
    assert fetched(path, ranged(now, **tag)) == 1
    assert path.read_bytes() == now


def test_a_file_is_fetched_by_one_run_at_a_time(tmp_path):
    path = tmp_path / "big.zip"
    with path.with_name("big.zip.partial").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputError, match=r"big.zip.partial: another run is fetching it"):
            fetched(path, OLD)
