"""What is written and renamed: many writers at once, and what a killed one leaves."""

import io
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
from PIL import Image

from dim_jax.datasets.construction.pictures import store
from dim_jax.errors import InputError
from dim_jax.storage.folders import new_file, new_folder
from dim_jax.storage.locks import remove_stale

THREADS, PICTURES = 16, 12


def picture(number: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (200, 200, 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def store_by_threads(folder: Path) -> list[str]:
    """Each picture by all threads at once; paths in the order of the pictures."""
    data = [picture(number) for number in range(PICTURES)]
    decoded = Image.new("RGB", (8, 8))  # only what is not a PNG is written anew
    together = Barrier(THREADS)

    def work(thread: int) -> tuple[str, ...]:
        found = []
        for one in data:
            together.wait()
            found.append(store(folder, one, decoded))
        return tuple(found)

    with ThreadPoolExecutor(THREADS) as pool:
        (paths,) = set(pool.map(work, range(THREADS)))
    return list(paths)


def test_threads_and_processes_store_the_same_pictures(tmp_path):
    with ProcessPoolExecutor(3, get_context("spawn")) as pool:
        found = list(pool.map(store_by_threads, [tmp_path] * 3))
    assert found[0] == found[1] == found[2]
    assert [(tmp_path / path).read_bytes() for path in found[0]] == [picture(number) for number in range(PICTURES)]
    assert sum(path.is_file() for path in tmp_path.rglob("*")) == PICTURES


def test_every_thread_has_written_before_the_first_renames(tmp_path, monkeypatch):
    """With one scratch name for all, the first to rename takes it from the others."""
    ready, replace, data = Barrier(THREADS), Path.replace, picture(0)
    monkeypatch.setattr(Path, "replace", lambda path, target: (ready.wait(60), replace(path, target))[1])
    with ThreadPoolExecutor(THREADS) as pool:
        (path,) = set(pool.map(lambda _: store(tmp_path, data, Image.new("RGB", (8, 8))), range(THREADS)))
    assert (tmp_path / path).read_bytes() == data
    assert sum(found.is_file() for found in tmp_path.rglob("*")) == 1


def test_concurrent_writers_do_not_mix(tmp_path):
    """Each writes other bytes; the file is at any time one of them, whole."""
    path = tmp_path / ("x" * 250)  # a name that leaves no room for another beside it

    def write(letter: str) -> set[str]:
        seen = set()
        for _ in range(20):
            with new_file(path) as scratch, scratch.open("w") as file:
                for _ in range(50):
                    file.write(letter * 1000)
            seen.add(path.read_text())
        return seen

    with ThreadPoolExecutor(THREADS) as pool:
        seen = set.union(*pool.map(write, "abcdefghijklmnop"))
    assert all(text == text[0] * 50_000 for text in seen)
    assert os.listdir(tmp_path) == [path.name]


def test_failed_write_leaves_no_file(tmp_path):
    with pytest.raises(UnicodeError), new_file(tmp_path / "a") as scratch:
        scratch.write_text("half \ud83d", encoding="utf-8")
    with pytest.raises(InputError, match="cannot be written"), new_file(tmp_path / "a") as scratch:
        raise OSError(5, "Input/output error")
    assert os.listdir(tmp_path) == []


KILLED = """
import sys, time
from pathlib import Path
from dim_jax.storage.folders import new_file, new_folder
folder = Path(sys.argv[1])
with new_file(folder / "a") as file, new_folder(folder / "b") as scratch:
    file.write_text("half")
    (scratch / "c").write_text("half")
    print("ready", flush=True)
    time.sleep(600)
"""


def test_stale_scratch_files_are_removed_and_live_ones_kept(tmp_path):
    for name in (".edit.partial", ".theirs.0123456789abcdef.old", "big.zip.partial", ".copy.lock", ".lock"):
        (tmp_path / name).touch()  # of others, who go on with them
    kept = set(tmp_path.iterdir())
    with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE) as run:
        try:
            assert run.stdout is not None
            assert run.stdout.readline() == b"ready\n"
            writing = set(tmp_path.iterdir()) - kept
            assert len(writing) == 3  # with the lock of b
            for look in (partial(new_file, tmp_path / "other"), partial(new_folder, tmp_path / "more")):
                remove_stale.cache_clear()  # as in a process of its own
                with look():
                    assert writing < set(tmp_path.iterdir())
        finally:
            run.kill()
    remove_stale.cache_clear()
    with new_file(tmp_path / "a") as scratch:
        scratch.write_text("whole")
    assert set(tmp_path.iterdir()) == kept | {tmp_path / name for name in ("a", "other", "more")}
