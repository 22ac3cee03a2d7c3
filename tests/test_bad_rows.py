"""Rows that name what cannot or may not be read: each is named with its file and line, and counted by the budget; nothing hangs."""

import io
import json
import os
import socket
import tarfile
from pathlib import Path

import numpy as np
import pytest

from dim_jax.data.indexing import index_source
from dim_jax.data.pipeline import evenly_spaced_examples
from dim_jax.data.sources.archives import follow_links
from dim_jax.errors import InputError
from dim_jax.paths import within
from tests.painter_fixtures import dim
from tests.test_sources import ROWS, TOKENIZER, dim_edit, extract, files, image, png, train

TABLE = "tos_dataset_edit.jsonl"


def changed(folder: Path, line: int, **fields: object) -> Path:
    """A line of the table with other fields."""
    lines = (folder / TABLE).read_text().splitlines()
    lines[line] = json.dumps(json.loads(lines[line]) | fields)
    (folder / TABLE).write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def edits(tmp_path) -> Path:
    folder = dim_edit(tmp_path / "DIM-Edit")
    extract(folder, files("image/{}.png"))
    return folder


def of_a_kind(folder: Path) -> dict[str, tuple[str, str]]:
    """Makes what is no file to read; name in the row, what is said of it."""
    os.mkfifo(folder / "fifo")
    (folder / "loop").symlink_to("loop")
    (folder / "gone").symlink_to("nowhere")
    (folder / "memory").symlink_to("/proc/self/mem")
    (folder.parent / "outside.png").write_bytes(png(image(0)))
    (folder / "out").symlink_to(folder.parent)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(folder / "socket"))
    return {
        "fifo": ("fifo", "no ordinary file"), "socket": ("socket", "cannot be read"), "folder": ("image", "it is a folder"),
        "below a file": (f"{TABLE}/a.png", "there is no"), "long": ("x" * 300, "there is no"), "loop": ("loop", "cannot be read"),
        "gone": ("gone", "there is no"), "EIO": ("memory", "out of"), "absolute": ("/proc/self/mem", "no path within"),
        "up": ("../outside.png", "no path within"), "up in the middle": ("image/../../outside.png", "no path within"),
        "by a link": ("out/outside.png", "is a link to"), "backslashes": ("..\\outside.png", "no path within"),
        "drive": ("C:\\outside.png", "no path within"), "NUL": ("image/0.png\0", "no path within"),
        "address": ("file:///etc/passwd", "no path within"), "half": ("image/\ud83d.png", "U+D83D"),
    }  # fmt: skip


def test_what_a_row_may_not_name(edits, monkeypatch):
    monkeypatch.chdir(edits)  # the name of a socket is short
    for name, says in of_a_kind(edits).values():
        source = train(changed(edits, 2, image_path=name))
        with pytest.raises(InputError) as error:
            source[2]
        assert f"{TABLE}, line 3" in str(error.value)
        assert says in str(error.value)
    assert "image/.." not in os.fspath(within(edits, "image/../image/0.png"))
    np.testing.assert_array_equal(train(changed(edits, 2, image_path="./image/../image/4.png"))[2].source, image(4))


def test_they_are_counted_by_the_budget(edits):
    for line, fields in enumerate(({"prompt": "Make \ud83d it."}, {"id": "a\ud83d"}, {"image_path": "/proc/self/mem"}, {"prompt": ["x"]})):
        changed(edits, line, **fields)
    os.mkfifo(edits / "fifo")
    changed(edits, 4, image_path="fifo")
    command = ("index", str(edits), "--tokenizer", str(TOKENIZER), "--bad-samples")
    code, text = dim(*command, "4")
    assert (code, "More than 4 rows cannot be used" in text) == (1, True), text
    code, text = dim(*command, "5")
    assert code == 0, text
    assert f"unusable rows: 5, listed in {edits / 'index/edit.bad_samples.jsonl'}. The first: {TABLE}, line 1" in text.replace(
        f"{edits}/{TABLE}", TABLE
    )
    rows = [json.loads(line) for line in (edits / "index/edit.bad_samples.jsonl").read_text().splitlines()]
    assert [row["row"] for row in rows] == [1, 2, 3, 4, 5]
    assert all(f"{TABLE}, line {row['row']}" in row["error"] for row in rows)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(edits):
    (edits / "image/4.png").chmod(0)
    with pytest.raises(InputError, match=rf"{TABLE}, line 3: .*image/4.png: cannot be read \(Permission denied\)"):
        train(edits)[2]


def test_errors_of_a_disk(edits, monkeypatch):
    """A picture, a line of the table, a member of an archive: at one place the disk fails."""
    real = os.pread
    source, line = train(edits), (edits / TABLE).read_text().splitlines(keepends=True)
    source[0]

    def pread(file: int, size: int, offset: int) -> bytes:
        if offset == len("".join(line[:2]).encode()):
            raise OSError(5, "Input/output error")
        return real(file, size, offset)

    monkeypatch.setattr("os.pread", pread)
    source[1]
    with pytest.raises(InputError, match=rf"{TABLE}, line 3: .*{TABLE}: cannot be read \(Input/output error\)"):
        source[2]


def test_tables_that_are_no_files(edits):
    os.mkfifo(edits / "a.jsonl")
    with pytest.raises(InputError, match=r"a.jsonl: cannot be read \(it is no ordinary file\)"):
        train(edits)


def linked(path: Path, links: dict[str, tuple[bytes, str]], mode: str) -> None:
    """A tar whose pictures are in a folder of another name; links come before and after what they lead to."""

    def add(archive: tarfile.TarFile, name: str) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = links[name]
        archive.addfile(info)

    with tarfile.open(path, mode) as archive:
        for name in list(links)[::2]:
            add(archive, name)
        for name, data in files("pictures/{}.png").items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name in list(links)[1::2]:
            add(archive, name)


@pytest.mark.parametrize(("name", "mode"), [("images.tar", "w"), ("images.tar.gz", "w:gz")])
def test_links_in_archives(tmp_path, name, mode):
    folder = dim_edit(tmp_path / "set")
    sym, hard = tarfile.SYMTYPE, tarfile.LNKTYPE
    links = {f"./image/{number}.png": (sym, f"../pictures/{number}.png") for number in range(0, 2 * ROWS, 2)}
    links |= {f"image/{number}.png": (hard, f"./pictures/{number}.png") for number in range(1, 2 * ROWS, 2)}
    links |= {"./image/2.png": (sym, "other/2.png"), "image/other": (sym, "../more"), "more": (sym, "pictures/")}  # a chain, by folders
    bad = {
        "a": (sym, "/etc/passwd"),
        "b": (sym, "../../x"),
        "c": (sym, "d"),
        "d": (hard, "c"),
        "e": (sym, "none.png"),
        "f": (hard, "/none"),
    }
    linked(folder / name, links | bad, mode)
    index_source(str(folder), None)
    for row in range(ROWS - 1):
        for one, number in ((train(folder)[row].source, 2 * row), (train(folder)[row].target, 2 * row + 1)):
            np.testing.assert_array_equal(one, image(number))
    for key, says in (("a", "out of its archive"), ("b", "out of its archive"), ("c", "in circles"), ("d", "in circles"),
                      ("e", "is a link to none.png, which is in none of images"), ("f", "is a link to none, which")):  # fmt: skip
        with pytest.raises(InputError, match=rf"{TABLE}, line 1: {key} is a link.*"):
            train(changed(folder, 0, image_path=key))[0]
        with pytest.raises(InputError, match=says):
            train(folder)[0]


def test_links_are_followed_as_a_file_system_does():
    links = {"a": (False, "b/../c"), "c": (False, "d"), "e/f": (False, "../d"), "g": (True, "e/f")}
    assert [follow_links(name, links) for name in ("a/x", "e/f/x", "g", "x/../y", "none")] == ["d/x", "d/x", "d", "y", "none"]


def at_the_end(text: str) -> str:
    return text + "\n"


def in_the_middle(text: str) -> str:
    lines = text.splitlines()
    return "\n".join([*lines[:4], "", *lines[4:]]) + "\n"


def windows(text: str) -> str:
    return "\ufeff" + text.replace("\n", "\r\n") + "\r\n"


@pytest.mark.parametrize("change", [at_the_end, in_the_middle, windows])
def test_a_blank_line_is_a_bad_row_also_where_it_is_held_out(edits, change):
    path = edits / TABLE
    path.write_text(change(path.read_text()), newline="")
    number = next(number for number, line in enumerate(path.read_text().splitlines(), 1) if not line)
    with pytest.raises(InputError, match=rf"{TABLE}, line {number}: is no JSON"):
        index_source(str(edits), None)
    assert index_source(str(edits), None, allowed=1) == {"edit": ROWS}
    (row,) = map(json.loads, (edits / "index/edit.bad_samples.jsonl").read_text().splitlines())
    assert (row["row"], row["split"]) == ((1, "test") if change is not in_the_middle else (5, "train"))


def test_a_first_line_that_is_blank(edits):
    path = edits / TABLE
    path.write_text("\n" + path.read_text())
    assert index_source(str(edits), None, allowed=1) == {"edit": ROWS}


def test_a_held_out_row_that_is_bad_counts_and_another_is_shown(edits):
    from dim_jax.data.pipeline import open_mixture

    (edits / f"image/{2 * ROWS - 1}.png").unlink()
    held_out = open_mixture(str(edits), {"edit": 1.0}, split="test", side=8)
    with pytest.raises(InputError, match=f"line {ROWS}"):
        list(evenly_spaced_examples(held_out, 8))
    bad = []
    assert list(evenly_spaced_examples(held_out, 8, bad)) == []
    assert [(one.row, f"line {ROWS}" in one.error) for one in bad] == [(1, True)]
