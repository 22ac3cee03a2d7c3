"""Rows that name what cannot or may not be read: each is named with its file and line, and counted by the budget; nothing hangs."""

import io
import json
import os
import re
import socket
import stat
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from dim_jax.datasets.layouts.archives import follow_links
from dim_jax.datasets.prepare import prepare
from dim_jax.errors import InputError
from dim_jax.storage.paths import resolve_within
from tests.layout_fixtures import ROWS, Rows, captions, dim_edit, extract, files, image, png, prepared
from tests.painter_fixtures import dim
from tests.test_train import train as run

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
    """Makes what is not a file to read; name in the row, what is said of it."""
    os.mkfifo(folder / "fifo")
    (folder / "loop").symlink_to("loop")
    (folder / "gone").symlink_to("nowhere")
    (folder / "memory").symlink_to("/proc/self/mem")
    (folder.parent / "outside.png").write_bytes(png(image(0)))
    (folder / "out").symlink_to(folder.parent)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(folder / "socket"))
    return {
        "fifo": ("fifo", "not an ordinary file"), "socket": ("socket", "cannot be read"), "folder": ("image", "it is a folder"),
        "below a file": (f"{TABLE}/a.png", "there is no"), "long": ("x" * 300, "there is no"), "loop": ("loop", "cannot be read"),
        "gone": ("gone", "there is no"), "EIO": ("memory", "outside of"), "absolute": ("/proc/self/mem", "not a path within"),
        "up": ("../outside.png", "not a path within"), "up in the middle": ("image/../../outside.png", "not a path within"),
        "by a link": ("out/outside.png", "is a link to"), "backslashes": ("..\\outside.png", "not a path within"),
        "drive": ("C:\\outside.png", "not a path within"), "NUL": ("image/0.png\0", "not a path within"),
        "address": ("file:///etc/passwd", "not a path within"), "half": ("image/\ud83d.png", "U+D83D"),
    }  # fmt: skip


def test_special_files_and_bad_paths_in_rows_are_refused(edits, monkeypatch):
    monkeypatch.chdir(edits)  # the name of a socket is short
    for name, says in of_a_kind(edits).values():
        source = Rows(changed(edits, 2, image_path=name))
        with pytest.raises(InputError) as error:
            source[2]
        assert f"{TABLE}, line 3" in str(error.value)
        assert says in str(error.value)
    assert "image/.." not in os.fspath(resolve_within(edits, "image/../image/0.png"))
    np.testing.assert_array_equal(Rows(changed(edits, 2, image_path="./image/../image/4.png"))[2].source, image(4))


def test_bad_rows_count_against_the_budget(edits):
    for line, fields in enumerate(({"prompt": "Make \ud83d it."}, {"id": "a\ud83d"}, {"image_path": "/proc/self/mem"}, {"prompt": ["x"]})):
        changed(edits, line, **fields)
    os.mkfifo(edits / "fifo")
    changed(edits, 4, image_path="fifo")
    out = edits.parent / "out"
    command = ("prepare", str(edits), str(out), "--bad-samples")
    code, text = dim(*command, "4")
    assert (code, "5 rows so far cannot be used, but --bad-samples allows 4" in text) == (1, True), text
    code, text = dim(*command, "5")
    assert (code, f"{ROWS - 6} rows of edit/train" in text) == (0, True), text
    assert f"5 rows cannot be used, and are listed in {out / 'bad_rows.jsonl'}. The first: {edits / TABLE}, line 1" in text
    rows = [json.loads(line) for line in (out / "bad_rows.jsonl").read_text().splitlines()]
    assert [row["row"] for row in rows] == [1, 2, 3, 4, 5]
    assert all(f"{TABLE}, line {row['row']}" in row["error"] for row in rows)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file_names_the_permission(edits):
    (edits / "image/4.png").chmod(0)
    with pytest.raises(InputError, match=rf"{TABLE}, line 3: .*image/4.png: cannot be read \(Permission denied\)"):
        Rows(edits)[2]


def test_disk_read_error_names_the_line(edits, monkeypatch):
    """A picture, a line of the table, a member of an archive: at one place the disk fails."""
    real = os.pread
    source, line = Rows(edits), (edits / TABLE).read_text().splitlines(keepends=True)
    source[0]

    def pread(file: int, size: int, offset: int) -> bytes:
        if offset == len("".join(line[:2]).encode()):
            raise OSError(5, "Input/output error")
        return real(file, size, offset)

    monkeypatch.setattr("os.pread", pread)
    source[1]
    with pytest.raises(InputError, match=rf"{TABLE}, line 3: .*{TABLE}: cannot be read \(Input/output error\)"):
        source[2]


def test_table_that_is_a_fifo_is_refused(edits):
    os.mkfifo(edits / "a.jsonl")
    with pytest.raises(InputError, match=r"a.jsonl: cannot be read \(it is not an ordinary file\)"):
        Rows(edits)


def linked_zip(path: Path, links: dict[str, tuple[bytes, str]]) -> None:
    """The same as a zip, compressed. As Unix makes them, which has no hard links there; the first number is that of symbolic links."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, (_, target) in links.items():
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, target)
        for name, data in files("pictures/{}.png").items():
            archive.writestr(f"/./{name}", data)


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


@pytest.mark.parametrize(("name", "mode"), [("images.tar", "w"), ("images.tar.gz", "w:gz"), ("images.zip", "")])
def test_links_in_archives(tmp_path, name, mode):
    folder = dim_edit(tmp_path / "set")
    sym, hard = tarfile.SYMTYPE, tarfile.LNKTYPE if mode else tarfile.SYMTYPE
    here = "./" if mode else "../"  # a hard link starts at the root of the archive
    links = {f"./image/{number}.png": (sym, f"../pictures/{number}.png") for number in range(0, 2 * ROWS, 2)}
    links |= {f"image/{number}.png": (hard, f"{here}pictures/{number}.png") for number in range(1, 2 * ROWS, 2)}
    links |= {"./image/2.png": (sym, "other/2.png"), "image/other": (sym, "../more"), "more": (sym, "pictures/")}  # a chain, by folders
    bad = {
        "a": (sym, "/etc/passwd"),
        "b": (sym, "../../x"),
        "c": (sym, "d"),
        "d": (hard, "c"),
        "e": (sym, "none.png"),
        "f": (hard, "/none" if mode else "none"),
    }
    linked(folder / name, links | bad, mode) if mode else linked_zip(folder / name, links | bad)
    for row in range(ROWS - 1):
        for one, number in ((Rows(folder)[row].source, 2 * row), (Rows(folder)[row].target, 2 * row + 1)):
            np.testing.assert_array_equal(one, image(number))
    for key, says in (("a", "out of its archive"), ("b", "out of its archive"), ("c", "in circles"), ("d", "in circles"),
                      ("e", "is a link to none.png, which is in none of images"), ("f", "is a link to none, which")):  # fmt: skip
        with pytest.raises(InputError, match=rf"{TABLE}, line 1: {key} is a link.*"):
            Rows(changed(folder, 0, image_path=key))[0]
        with pytest.raises(InputError, match=says):
            Rows(folder)[0]


def test_a_zip_as_people_have_it(edits):
    """A member that is damaged or encrypted, or is named so as to leave the folder, is a bad row; a cut one names its file."""
    for number, data in enumerate(files("image/{}.png").values()):
        (edits / f"image/{number}.png").unlink()
        with zipfile.ZipFile(edits / "images.zip", "a") as archive:
            archive.writestr({2: "../image/2.png", 3: "a/../image/3.png"}.get(number, f"image/{number}.png"), data)
    data = bytearray((edits / "images.zip").read_bytes())
    data[data.index(b"image/0.png") + 60] ^= 255
    encrypted = data.rindex(b"PK\1\2", 0, data.rindex(b"image/5.png"))
    data[encrypted + 8] |= 1  # the flag of its entry in the table at the end
    (edits / "images.zip").write_bytes(data)
    for row, says in ((0, "Bad CRC-32"), (1, "image/2.png is in none of images.zip"), (2, "is encrypted")):
        with pytest.raises(InputError, match=rf"{TABLE}, line {row + 1}: .*{says}"):
            Rows(edits)[row]
    np.testing.assert_array_equal(Rows(edits)[3].target, image(7))
    for number, ending in enumerate((".part00", ".part01")):
        (edits / f"images.zip{ending}").write_bytes(data[number * 2000 : 2000 if number == 0 else None])
    (edits / "images.zip").unlink()
    np.testing.assert_array_equal(Rows(edits, notes=edits.parent / "parts")[3].target, image(7))
    (edits / "images.zip.part01").write_bytes(data[2000:-30])
    with pytest.raises(InputError, match=r"images.zip.part01: the archive images.zip is damaged or incomplete"):
        Rows(edits, notes=edits.parent / "cut")[3]


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
    path, out = edits / TABLE, edits.parent / "out"
    path.write_text(change(path.read_text()), newline="")
    number = next(number for number, line in enumerate(path.read_text().splitlines(), 1) if not line)
    with pytest.raises(InputError, match=rf"{TABLE}, line {number}: is not JSON"):
        prepare(edits, out)
    rows = {"edit/train": ROWS - 1, "edit/test": 1} if change is in_the_middle else {"edit/train": ROWS, "edit/test": 0}
    assert prepare(edits, out, bad_samples=1) == rows
    (row,) = map(json.loads, (out / "bad_rows.jsonl").read_text().splitlines())
    assert (row["row"], row["split"]) == ((1, "test") if change is not in_the_middle else (5, "train"))


def test_a_first_line_that_is_blank(edits):
    path = edits / TABLE
    path.write_text("\n" + path.read_text())
    assert prepare(edits, edits.parent / "out", bad_samples=1) == {"edit/train": ROWS - 1, "edit/test": 1}


def test_a_record_that_is_damaged_while_training(tmp_path):
    """The run names it and stops; within the budget another row stands in, and it is listed once."""
    folder = prepared(captions(tmp_path / "set"), shards=1)
    path = folder / "caption/caption-train.array_record-00000-of-00001"
    data = bytearray(path.read_bytes())
    data[3000:3040] = bytes(40)
    path.write_bytes(data)
    options = {"data__source": str(folder), "data__mix__edit": "0.0", "data__mix__caption": "1.0"}
    code, text = run("nano_encoder", tmp_path / "none", 8, **options)
    assert code == 1
    assert re.search(rf"{folder}/caption, train, row \d+: \S+: damaged", text), text
    code, text = run("nano_encoder", tmp_path / "one", 8, **options, data__bad_samples="1")
    assert code == 0, text
    (row,) = map(json.loads, (tmp_path / "one/bad_samples.jsonl").read_text().splitlines())
    assert (row["source"], f"row {row['row']}: {path}: damaged" in row["error"]) == (f"caption:{folder}", True)
