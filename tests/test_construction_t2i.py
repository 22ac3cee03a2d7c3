"""`dim build-data dim-t2i`: pictures by every kind of rule, size and soundness, captions, going on, against local servers."""

import csv
import io
import json
import re
import stat
import sys
import tarfile
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from dim_jax.datasets.construction.config import read_config
from dim_jax.datasets.construction.download_images import FAILURES, PICTURES, download_pictures
from dim_jax.datasets.construction.locators import LOCATORS
from dim_jax.datasets.construction.t2i import CAPTIONS, REJECTS, TABLE
from dim_jax.datasets.construction.upstream import unpack
from dim_jax.errors import InputError
from tests.chat_server import ChatServer, Turnstile, good
from tests.construction_fixtures import drawing
from tests.painter_fixtures import dim, one_error
from tests.picture_server import PictureServer
from tests.started import started

OUT = Path("out")
CAPTION = "A disc of one colour lies in the middle of a plain white ground, evenly lit and without a shadow."


@pytest.fixture(autouse=True)
def _place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    Path("meta").mkdir()
    Path("up").mkdir()


def png(colour: str, side: int = 64) -> bytes:
    file = io.BytesIO()
    drawing(colour, side=side).save(file, "PNG")
    return file.getvalue()


def config(sources: dict[str, dict[str, Any]], time_limit: float = 60.0) -> None:
    """With small pictures and quick downloads."""
    lines = ["[pictures]", "min_side = 64", "[download]", "interval = 0.0", "per_host = 8", "tries = 2", f"time_limit = {time_limit}"]
    lines += ["[captions]", "min_words = 10"]
    for name, rule in sources.items():
        lines += [f"[sources.{name}]", *(f"{key} = {json.dumps(value)}" for key, value in rule.items())]
    Path("own.toml").write_text("\n".join(lines) + "\n")


def metadata(name: str, keys: list[str], **more: Any) -> None:
    rows = ({"image_path": key, "caption": f"Published for {key}.", **more} for key in keys)
    (Path("meta") / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def build(*more: str, source: str = "mine") -> tuple[int, str]:
    return dim(
        "build-data", "dim-t2i", "out", "--metadata", "meta", "--upstream", "up", "--config", "own.toml", "--source", source, *more
    )  # fmt: skip


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (OUT / name).read_text().splitlines()] if (OUT / name).exists() else []


def reasons() -> dict[str, str]:
    return {row["id"].partition("/")[2]: row["reason"] for row in rows(REJECTS)}


def test_the_rules_cover_the_published_sub_sources():
    """13 of them, with the published numbers of samples, by rules that exist."""
    sources = read_config("dim_t2i.toml", None)["sources"]
    assert len(sources) == 13
    assert sum(rule["samples"] for rule in sources.values()) == 6_309_918
    assert sum(len(rule["metadata"]) for rule in sources.values()) == 17
    for rule in sources.values():
        assert rule["place"] in LOCATORS
        assert rule["place"] == "url" or rule.get("repo") or rule.get("archives")


def test_download_by_url_and_its_errors():
    files: dict[str, Any] = {"/good.png": png("red"), "/again.png": [503, png("blue")], "/gone.png": 404}
    files |= {"/broken.png": png("red")[:60], "/page.png": b"<html>", "/small.png": png("red", 63), "/same.png": png("red")}
    config({"mine": {"metadata": ["mine.jsonl"], "place": "url", "samples": 8}})
    with PictureServer(files) as server:
        metadata("mine.jsonl", [server.url + name for name in files])
        code, text = build()
        assert (code, "3 pictures, 4 rejected" in text) == (0, True), text
        before = len(server.requests)
        assert build()[0] == 0
        assert len(server.requests) == before
    found = rows(TABLE)
    assert [row["id"].rpartition("/")[2] for row in found] == ["good.png", "again.png", "same.png"]
    assert (OUT / found[0]["image_path"]).read_bytes() == png("red")
    assert found[0]["image_path"] == found[2]["image_path"]  # one file for one picture
    assert found[0]["prompt"] == f"Published for {server.url}/good.png."
    why = {key.rpartition("/")[2]: reason for key, reason in reasons().items()}
    assert why["gone.png"] == "the server answered 404"
    assert why["small.png"] == "too small: 63 x 63 pixels, where each side needs 64"
    assert "not a picture" in why["page.png"]
    assert "broken.png" in why
    page = (OUT / "README.md").read_text()
    assert "| mine | 8 | 3 | 4 |" in page
    assert "146.76" in page
    assert "| pictures | too small | 1 |" in page


def test_a_server_that_never_answers():
    config({"mine": {"metadata": ["mine.jsonl"], "place": "url"}}, time_limit=0.3)
    with PictureServer({"/hangs.png": 600.0}) as server:
        metadata("mine.jsonl", [f"{server.url}/hangs.png"])
        assert build()[0] == 0
    assert list(reasons().values()) == ["no file in 2 tries: not whole within 0.3 s"]


def test_failures_are_tried_again_on_request():
    config({"mine": {"metadata": ["mine.jsonl"], "place": "url"}})
    with PictureServer({"/a.png": [404, png("red")]}) as server:
        metadata("mine.jsonl", [f"{server.url}/a.png"])
        build()
        assert len(reasons()) == 1
        build("--retry-failed")
    assert (len(rows(TABLE)), reasons()) == (1, {})


def tables(kind: str) -> None:
    keys, pictures = ["k1", "k2", "7"], [png("red"), png("blue"), png("green")]
    if kind == "bytes":
        parquet.write_table(pyarrow.table({"uid": keys, "image": pictures}), "up/mine/a.parquet")
    elif kind == "struct":
        cells = [{"bytes": data, "path": None} for data in pictures]
        parquet.write_table(pyarrow.table({"uid": ["x", "k2"], "image": cells[:2]}), "up/mine/a.parquet")
        parquet.write_table(pyarrow.table({"uid": [7, 8], "image": cells[1:]}), "up/mine/b.parquet")


@pytest.mark.parametrize(("kind", "found"), [("bytes", ["k1", "k2", "7"]), ("struct", ["k2", "7"])])
def test_pictures_in_tables(kind, found):
    Path("up/mine").mkdir()
    tables(kind)
    rule = {"metadata": ["mine.jsonl"], "place": "table", "files": "*.parquet", "key": "uid", "picture": "image"}
    config({"mine": rule})
    metadata("mine.jsonl", ["k1", "k2", "7", "none"])
    assert build()[0] == 0
    assert [row["id"] for row in rows(TABLE)] == [f"mine/{key}" for key in found]
    assert reasons()["none"] == "it is not upstream"
    config({"mine": {**rule, "key": "id"}})
    assert "has no column id, but uid, image" in build("--retry-failed")[1]
    config({"mine": {**rule, "files": "*.csv"}})
    assert "has no *.csv" in build("--retry-failed")[1]
    Path("up/mine/a.parquet").write_bytes(b"PAR1")
    config({"mine": rule})
    assert "a.parquet: is not a parquet file, or damaged" in build("--retry-failed")[1]


def test_addresses_in_a_csv_that_is_fetched_first():
    with PictureServer({"/a.png": png("red"), "/train.csv": b"later"}) as server:
        table = io.StringIO()
        csv.writer(table).writerows([("id", "url", "title"), ("p1", f"{server.url}/a.png", "x"), ("p2", f"{server.url}/none.png", "y")])
        server.files["/train.csv"] = table.getvalue().encode()
        rule = {"metadata": ["mine.jsonl"], "place": "table", "files": "train.csv", "key": "id", "url": "url"}
        config({"mine": {**rule, "archives": [f"{server.url}/train.csv"]}})
        metadata("mine.jsonl", ["p1", "p2"])
        assert build("--fetch", "--until", "fetch")[0] == 0
        assert [path.name for path in OUT.iterdir()] == ["stages"]
        assert build("--fetch")[0] == 0
        assert sum(path == "/train.csv" for path, _ in server.requests) == 1
    assert [row["id"] for row in rows(TABLE)] == ["mine/p1"]
    assert reasons() == {"p2": "the server answered 404"}


def test_files_in_an_archive_that_is_fetched_and_unpacked():
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("4o/image/1.png", png("red"))
        file.writestr("4o/image/2.png", png("blue"))
        file.writestr("other/2.png", png("green"))
    with PictureServer({"/the%20images.zip": archive.getvalue(), "/bad.zip": archive.getvalue()[:200]}) as server:
        rule = {"metadata": ["mine.jsonl"], "place": "files", "files": "."}
        config({"mine": {**rule, "archives": [f"{server.url}/the%20images.zip"]}, "bad": {**rule, "archives": [f"{server.url}/bad.zip"]}})
        metadata("mine.jsonl", ["1.png", "2.png", "4o/image/2.png", "../../own.toml"])
        assert build("--fetch")[0] == 0
        assert "bad.zip: cannot be unpacked" in one_error(build("--fetch", source="bad"))
    assert [row["id"] for row in rows(TABLE)] == ["mine/1.png", "mine/4o/image/2.png"]
    assert set(reasons()) == {"2.png", "../../own.toml"}  # two files fit the one, the other lies elsewhere


def zip_with(path: Path, *links: tuple[str, str], **members: bytes) -> None:
    """A zip of members, and of links as Unix makes them."""
    with zipfile.ZipFile(path, "w") as file:
        for name, target in links:
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
            file.writestr(info, target)
        for name, data in members.items():
            file.writestr(name, data)


def test_links_in_a_zip(tmp_path):
    zip_with(tmp_path / "a.zip", ("1.png", "more/2.png"), ("more/3.png", "../red.png"), ("pictures", "more"), red_png=png("red"))
    zip_with(tmp_path / "b.zip", **{"more/2.png": png("blue"), "/red.png": png("red")})
    for _ in range(2):
        for name in "ab":
            unpack(tmp_path / f"{name}.zip")
            (tmp_path / f".{name}.zip.unpacked").unlink()  # as after a kill
    assert (tmp_path / "1.png").read_bytes() == (tmp_path / "pictures/2.png").read_bytes() == png("blue")
    assert (tmp_path / "more/3.png").read_bytes() == png("red")


@pytest.mark.parametrize(
    ("links", "members", "says"),
    [
        ((), {"../up.png": b"x"}, "'../up.png' is not a path within"),
        ((), {"C:\\up.png": b"x"}, "is not a path within"),
        ([("a/1.png", "/etc/passwd")], {}, "'/etc/passwd' is not a path within"),
        ([("a/1.png", "../../x")], {}, "'a/../../x' is not a path within"),
    ],
)
def test_a_zip_that_leaves_its_folder(tmp_path, links, members, says):
    (tmp_path / "in").mkdir()
    zip_with(tmp_path / "in/a.zip", *links, **members)
    with pytest.raises(InputError, match=re.escape(says)):
        unpack(tmp_path / "in/a.zip")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.zip", "in", "meta", "up"]


def test_members_of_a_tar_by_their_key():
    Path("up/mine").mkdir()
    with tarfile.open("up/mine/0.tar", "w") as tar:
        for name, data in (("a/b/1-2.png", png("red")), ("a/b/1-2.json", b"{}"), ("3.txt", b"x")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    config({"mine": {"metadata": ["mine.jsonl"], "place": "tar", "files": "*.tar"}})
    metadata("mine.jsonl", ["a/b/1-2", "3"])
    assert build()[0] == 0
    assert [row["id"] for row in rows(TABLE)] == ["mine/a/b/1-2"]


def test_a_repository_of_the_hub_is_asked_for_what_the_rule_names(monkeypatch):
    asked = []

    def download(repo: str, **options: Any) -> str:
        asked.append((repo, options["repo_type"], options["allow_patterns"], options["local_dir"]))
        return str(options["local_dir"])

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    config({"mine": {"metadata": [], "place": "files", "repo": "a/b", "patterns": ["*.parquet"]}})
    assert build("--fetch", "--until", "fetch")[0] == 0
    assert asked == [("a/b", "dataset", ["*.parquet"], Path("up/mine"))]


def local(number: int, **more: Any) -> None:
    Path("up/mine").mkdir()
    for i in range(number):
        Image.new("RGB", (64, 64), (i, 0, 0)).save(f"up/mine/{i}.png")
    config({"mine": {"metadata": ["mine.jsonl"], "place": "files", "files": "."}})
    metadata("mine.jsonl", [f"{i}.png" for i in range(number)], **more)


def test_captions_along_the_dimensions_instead_of_the_published_ones():
    local(3)
    with ChatServer(good("No."), good(CAPTION)) as server:
        code, text = build("--designer", "openai:m", "--base-url", server.url, "--concurrency", "1")
        assert (code, "captions.jsonl: 2 answered, 1 failed" in text) == (0, True), text
        assert "- spatial relations: " in server.requests[0].text
        assert server.requests[0].picture == Path("up/mine/0.png").read_bytes()
    assert {row["prompt"] for row in rows(TABLE)} == {CAPTION}
    assert reasons() == {"0.png": "the answer is too short: 1 words of at least 10"}
    assert {row["stage"] for row in rows(REJECTS)} == {"caption"}
    assert json.loads((OUT / "statistics.json").read_text())["words"]["mean"] == len(CAPTION.split())


def test_caption_field_selection():
    local(1, source="web")
    assert "several texts, caption, source" in one_error(build())
    Path("own.toml").write_text(Path("own.toml").read_text().replace("[captions]\n", '[captions]\nfield = "caption"\n'))
    assert build()[0] == 0
    assert rows(TABLE)[0]["prompt"] == "Published for 0.png."


SCRIPT = "import sys; from dim_jax.cli.main import main; sys.argv[0] = 'dim'; main()"


def test_resume_after_kill_downloads_and_asks_nothing_twice():
    """First among the pictures, then among the captions; what was under way is asked again, one for each that was allowed at once."""
    files = {f"/{i}.png": png(f"#{i:02x}0000") for i in range(40)}
    config({"mine": {"metadata": ["mine.jsonl"], "place": "url"}})
    Path("own.toml").write_text(Path("own.toml").read_text().replace("per_host = 8", "per_host = 2\nconcurrency = 4"))
    turnstile = Turnstile(good(CAPTION), 20)
    with PictureServer(files) as pictures, ChatServer(turnstile) as server:
        metadata("mine.jsonl", [pictures.url + name for name in files])
        arguments = ["build-data", "dim-t2i", "out", "--metadata", "meta", "--upstream", "up", "--config", "own.toml", "--source", "mine"]
        arguments += ["--designer", "openai:m", "--base-url", server.url, "--concurrency", "2"]
        for file, number in ((PICTURES, 5), (CAPTIONS, 5)):
            with started(Path("output"), [sys.executable, "-c", SCRIPT, *arguments], cwd=Path()) as run:
                run.wait_until(lambda file=file, number=number: len(rows(file)) >= number)
        turnstile.opened = 1000
        assert dim(*arguments)[0] == 0
        assert 40 <= len(pictures.requests) <= 40 + 4
        assert 40 <= len(server.requests) <= 40 + 2 * 2
    assert len(rows(TABLE)) == 40
    assert rows(FAILURES) == []


def test_invalid_build_options_are_refused():
    local(1)
    assert "no sub-source none. There are: " in one_error(build(source="none"))
    Path("meta/mine.jsonl").write_text('{"caption": "x"}\n')
    assert "line 1: has no image_path" in one_error(build())
    Path("meta/mine.jsonl").unlink()
    assert "hf download" in one_error(build())
    (OUT / "stages").rmdir()
    (OUT / "own").write_text("x")
    assert "Choose another output" in one_error(build())
    assert build("--until", "paint")[0] == 2


def test_rows_are_not_held_in_memory():
    """Of 3,000 rows with captions as long as the published ones, most of them found before: 3.6 MB as they lie on disk."""
    number, left = 3_000, 20
    Path("up/mine").mkdir()
    with Path("meta/mine.jsonl").open("w") as file:
        for i in range(number):
            file.write(json.dumps({"image_path": f"{i:06}.png", "caption": f"{i} {'word ' * 200}"}) + "\n")
    (OUT / "stages").mkdir(parents=True)
    with (OUT / PICTURES).open("w") as file:
        for i in range(number - left):
            file.write(json.dumps({"id": f"mine/{i:06}.png", "image_path": f"image/{i:06}.png"}) + "\n")
    rules = {"mine": {"metadata": ["mine.jsonl"], "place": "files", "files": "."}}
    tracemalloc.start()
    taken = download_pictures(OUT, Path("meta"), Path("up"), rules, read_config("dim_t2i.toml", None))
    counts = sum(1 for row in taken.rows() if row["prompt"]), sum(1 for _ in taken.rejects())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    taken.ledger.close()
    assert counts == (number - left, left)
    assert peak < 1e6
