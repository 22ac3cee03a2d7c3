"""Downloads from a local server: what is tried again and what not, how politely, and large files that are continued."""

import asyncio
import hashlib
import time

import pytest

from dim_jax.construction.download import DownloadError, Downloads
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
def test_a_file_and_the_troubles_on_its_way(file, found, requests):
    with PictureServer({"/a.png": file}) as server:
        assert get(f"{server.url}/a.png") == [found]
    assert len(server.requests) == requests
    assert server.agents == {"test (mail@example.org)"}


def test_a_server_that_never_answers():
    with PictureServer({"/a.png": 600.0}) as server:
        assert get(f"{server.url}/a.png", time_limit=0.2) == ["no file in 3 tries: not whole within 0.2 s"]


def test_a_server_that_is_gone_and_what_is_no_address():
    with PictureServer({}) as server:
        pass
    gone, *others = get(f"{server.url}/a.png", "ftp://a/b.png", "a/b.png", "", "http://", tries=2)
    assert str(gone).startswith("no file in 2 tries: no connection")
    assert others == ["no address of a file"] * 4


def test_checksums():
    right, wrong = hashlib.sha256(b"data").hexdigest(), hashlib.sha256(b"other").hexdigest()
    with PictureServer({"/a": b"data"}) as server:
        assert get(f"{server.url}/a", sha256=right.upper()) == [b"data"]
        assert get(f"{server.url}/a", sha256=wrong) == ["the checksum is another than the published one"]


def test_few_at_once_and_spaced_for_each_server():
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
def test_a_server_that_asks_for_a_day_is_left_alone(wait, tmp_path):
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
