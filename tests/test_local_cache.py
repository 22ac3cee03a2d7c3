"""Copies of a bucket's files: one for a machine, kept, fetched anew when they changed, refused where there is no space."""

import errno
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from etils import epath

from dim_jax.errors import InputError
from dim_jax.storage import local_cache as module
from dim_jax.storage.local_cache import cached_path, check_disk_space
from dim_jax.storage.paths import as_path, file_system
from tests.bucket import counted_requests


@pytest.fixture
def remote(bucket, tmp_path, monkeypatch) -> epath.Path:
    """A file in the bucket, of which no process has a copy."""
    monkeypatch.setenv("DIM_JAX_CACHE", str(tmp_path / "kept"))
    path = as_path(f"{bucket}/{tmp_path.name}/sub/one")
    path.write_text("one" * 1000)
    assert isinstance(path, epath.Path)
    return path


def full(source: str, target: str) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def again(path: epath.Path) -> str:
    """What another process would read."""
    module._cached_copy.cache_clear()
    return cached_path(path).read_text()


def test_a_file_of_this_machine_is_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("DIM_JAX_CACHE", str(tmp_path / "kept"))
    assert cached_path(tmp_path / "none") == tmp_path / "none"
    check_disk_space([tmp_path / "none"])
    assert not (tmp_path / "kept").exists()


OTHER = """
import sys
from dim_jax.storage.local_cache import cached_path
from dim_jax.storage.paths import as_path
print(cached_path(as_path(sys.argv[1])).stat().st_mtime_ns)
"""


def test_it_is_fetched_once_and_found_again(remote, tmp_path):
    with counted_requests() as counts:
        found = cached_path(remote)
        assert found == tmp_path / "kept" / str(remote).removeprefix("gs://")
        assert [again(remote) for _ in range(3)] == [found.read_text()] * 3
    assert counts[str(remote)] == 1
    other = subprocess.run([sys.executable, "-c", OTHER, str(remote)], capture_output=True, text=True, check=True)
    assert int(other.stdout) == found.stat().st_mtime_ns


def test_concurrent_fetches_download_once(remote):
    found = []
    with counted_requests() as counts:
        threads = [threading.Thread(target=lambda: found.append(cached_path(remote).read_text())) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == ["one" * 1000] * 6
    assert counts[str(remote)] == 1


def test_another_file_in_its_place_is_fetched_anew(remote, tmp_path):
    first = cached_path(remote)
    for text in ("two" * 1000, "longer" * 1000):
        remote.write_text(text)
        assert again(remote) == text
    assert cached_path(remote) == first
    assert sorted(path.name for path in first.parent.iterdir()) == [".one.lock", ".one.of", "one"]


def test_truncated_copy_is_fetched_again(remote, monkeypatch):
    place = cached_path(remote)
    place.unlink()
    assert again(remote) == "one" * 1000
    place.with_name(".one.of").write_text("")  # killed between the file and its note
    place.write_text("something else")
    assert again(remote) == "one" * 1000


def test_too_little_space_is_one_error(remote, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=2999))
    told = rf"copy of {remote}: no space in {tmp_path / 'kept'} \(2.93 KiB are needed, 2.93 KiB are free\)"
    with pytest.raises(InputError, match=rf"{told}.*DIM_JAX_CACHE=FOLDER.*gcsfuse --implicit-dirs bucket "):
        cached_path(remote)
    (remote.parent / "two").write_text("2")
    with pytest.raises(InputError, match=rf"{remote} and 1 more files: no space"):
        check_disk_space([remote, remote.parent / "two"])
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=3000))
    cached_path(remote)
    check_disk_space([remote])  # it is there already
    with monkeypatch.context() as patch:  # another process fills the disk
        patch.setattr("dim_jax.storage.local_cache.file_system", lambda path: SimpleNamespace(info=file_system(path).info, get_file=full))
        with pytest.raises(InputError, match="two: no space"):
            cached_path(remote.parent / "two")
    with pytest.raises(InputError, match="cannot be reached"):
        cached_path(remote.parent / "three")


def test_a_folder_that_cannot_be_made_is_one_error(remote, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DIM_JAX_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"file: copies cannot be written there .* DIM_JAX_CACHE=FOLDER"):
        cached_path(remote)


def test_where_copies_are_kept(monkeypatch):
    monkeypatch.delenv("DIM_JAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert module.cache_folder("buckets") == Path("/somewhere/dim_jax/buckets")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert module.cache_folder("buckets") == Path("/home/me/.cache/dim_jax/buckets")


FORKED = """
import os, signal, sys
from dim_jax.storage.local_cache import cached_path
from dim_jax.storage.paths import as_path, read_range
path = as_path(sys.argv[1])
read_range(path, 0, 1)
if child := os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
signal.alarm(60)  # it would wait for ever
os._exit(0 if read_range(path, 3, 3) == b"one" and len(cached_path(path).read_text()) == 3000 else 1)
"""


def test_a_process_that_was_forked_reaches_the_bucket(remote):
    """Its parent's connections are not its own."""
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", FORKED, str(remote)], check=False).returncode == 0
