"""The pictures of DIM-T2I: finds, downloads, checks and stores each once; failures get a reason."""

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from dim_jax.datasets.construction.download import DownloadError, Downloads
from dim_jax.datasets.construction.edit import reject_row
from dim_jax.datasets.construction.ledger import Ledger, MissingKeys
from dim_jax.datasets.construction.locators import LocatedPicture, locate
from dim_jax.datasets.construction.pictures import store
from dim_jax.datasets.construction.sources import LazyImage
from dim_jax.designer.journal import JsonlLog
from dim_jax.errors import InputError, check, check_unicode
from dim_jax.storage.jsonl import read_objects

PICTURES, FAILURES = "stages/pictures.jsonl", "stages/pictures.failures.jsonl"
THREADS = 4


class Row(NamedTuple):
    """A line of the metadata: its key upstream, its published caption (or ""), the checksum of the picture if it is known."""

    key: str
    caption: str
    sha256: str | None


class DownloadedPictures(NamedTuple):
    """The outcome of the rows of the metadata, in their order; read again each time, since millions of rows do not fit into memory."""

    ledger: Ledger
    metadata: Path
    rules: Mapping[str, Mapping[str, Any]]
    field: str

    def rows(self) -> Iterator[dict[str, str]]:
        """Rows with `id`, `image_path` and the published caption as `prompt`."""
        for row_id, row, path, _ in self._outcomes():
            if path:
                yield {"id": row_id, "image_path": path, "prompt": row.caption}

    def rejects(self) -> Iterator[dict[str, str]]:
        """The others, with their reasons."""
        for row_id, _, path, reason in self._outcomes():
            if not path:
                yield reject_row({"id": row_id}, "pictures", reason)

    def _outcomes(self) -> Iterator[tuple[str, Row, str, str]]:
        for name, rule in self.rules.items():
            for number, row in enumerate(read_metadata(self.metadata, rule, self.field)):
                first, path, reason = self.ledger.outcome(name, row.key)
                if number == first:  # the first row of a key that occurs twice
                    yield f"{name}/{row.key}", row, path, reason


def download_pictures(
    folder: Path,
    metadata: Path,
    upstream: Path,
    rules: Mapping[str, Mapping[str, Any]],
    config: Mapping[str, Any],
    *,
    retry_failed: bool = False,
    log: Callable[[str], None] = lambda line: None,
) -> DownloadedPictures:
    """Find, download, check and store the pictures of sub-sources that are not there yet. Raises InputError as in `build`."""
    ledger, field = Ledger(), config["captions"]["field"]
    lines, failures = JsonlLog.locked(folder / PICTURES, wait=False), JsonlLog(folder / FAILURES)
    try:
        for name, rule in rules.items():
            ledger.add(name, ((row.key, row.sha256) for row in read_metadata(metadata, rule, field)))
        for _, row in lines.read():
            ledger.record(*row["id"].split("/", 1), path=row["image_path"])
        for _, row in failures.read() if not retry_failed else ():
            ledger.record(*row["id"].split("/", 1), reason=row["reason"])

        def save(name: str, key: str, path: str, reason: str) -> None:
            row_id = f"{name}/{key}"
            if path:
                lines.append({"id": row_id, "image_path": path})
            else:
                failures.append({"id": row_id, "reason": reason})
            ledger.record(name, key, path=path, reason=reason)

        for name, rule in rules.items():
            missing = MissingKeys(ledger, name)
            if count := len(missing):
                log(f"{name}: {count} pictures to find")
                asyncio.run(_download(locate(rule, missing, upstream / name), missing, folder, config, partial(save, name)))
                for key in missing:
                    save(name, key, "", "it is not upstream")
    finally:
        lines.close()
        failures.close()
    return DownloadedPictures(ledger, metadata, rules, field)


def read_metadata(folder: Path, rule: Mapping[str, Any], field: str) -> Iterator[Row]:
    """The rows of a sub-source.

    Raises:
        InputError: a file is missing or damaged, or a line has no image_path, or several texts and `field` is not set.
    """
    for file in rule["metadata"]:
        path = folder / file
        check(path.is_file(), f"{path}: there is no such file. Get the metadata: hf download stdKonjac/DIM-T2I --repo-type dataset.")
        for line, row in read_objects(path):
            check_unicode(json.dumps(row, ensure_ascii=False), line)
            yield Row(*_caption(row, field, line), row.get("sha256"))


def _caption(row: Mapping[str, Any], field: str, where: str) -> tuple[str, str]:
    key = row.get("image_path")
    if not isinstance(key, str) or not key:
        raise InputError(f"{where}: has no image_path. Repair the line.")
    texts = [name for name, value in row.items() if isinstance(value, str) and name not in ("image_path", "id", "sha256")]
    if not field and len(texts) > 1:
        raise InputError(f"{where}: has several texts, {', '.join(texts)}. Name the caption in the config (captions.field).")
    return key, str(row.get(field, "")) if field else str(row[texts[0]]) if texts else ""


async def _download(
    locations: Iterator[LocatedPicture],
    missing: MissingKeys,
    folder: Path,
    config: Mapping[str, Any],
    record: Callable[[str, str, str], None],
) -> None:
    """Call `record` with key, path and reason of each picture; path or reason is empty."""
    loop, limits, reading = asyncio.get_running_loop(), config["pictures"], asyncio.Lock()
    # One thread writes, so lines do not mix and a slow disk does not block downloads.
    with ThreadPoolExecutor(THREADS) as pool, ThreadPoolExecutor(1) as writer:

        async def work(downloads: Downloads) -> None:
            while True:
                async with reading:  # a table is read in another thread, by one at a time
                    located = await loop.run_in_executor(pool, next, locations, None)
                if located is None:
                    return
                path, reason = "", ""
                try:
                    if isinstance(located.location, str):
                        data = await downloads.get(located.location, limits["max_bytes"], missing.sha256(located.key))
                    else:
                        data = await loop.run_in_executor(pool, located.location.read)
                    path = await loop.run_in_executor(pool, check_and_store, folder, data, limits["min_side"])
                except (DownloadError, InputError) as error:
                    reason = str(error)
                await loop.run_in_executor(writer, record, located.key, path, reason)

        async with Downloads(config["download"]) as downloads:
            await asyncio.gather(*(work(downloads) for _ in range(config["download"]["concurrency"])))


def check_and_store(folder: Path, data: bytes, min_side: int) -> str:
    """Store a picture that is sound and large enough; returns its path from `folder`. Raises InputError if it is not."""
    picture = LazyImage("the file", lambda: data).picture()
    check(min(picture.size) >= min_side, f"too small: {picture.width} x {picture.height} pixels, where each side needs {min_side}")
    return store(folder, data, picture)
