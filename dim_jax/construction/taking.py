"""The pictures of DIM-T2I's rows: found, downloaded where they have to be, checked, stored; each once, and what fails with a reason."""

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from dim_jax.construction.download import DownloadError, Downloads
from dim_jax.construction.edit import reject
from dim_jax.construction.pictures import store
from dim_jax.construction.places import Found, locate
from dim_jax.construction.sources import Stored
from dim_jax.data.jsonl import objects
from dim_jax.designer.journal import Lines
from dim_jax.errors import InputError, check_unicode

PICTURES, FAILURES = "stages/pictures.jsonl", "stages/pictures.failures.jsonl"
THREADS = 4


class Row(NamedTuple):
    """A line of the metadata: its key upstream, its published caption (or ""), the checksum of the picture if it is known."""

    key: str
    caption: str
    sha256: str | None


def take_pictures(
    folder: Path,
    metadata: Path,
    upstream: Path,
    rules: Mapping[str, Mapping[str, Any]],
    config: Mapping[str, Any],
    *,
    retry_failed: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Find, download, check and store the pictures of sub-sources that are not there yet.

    Returns:
        rows with `id`, `image_path` and the published caption as `prompt`, and rejects with their reasons, in the order of the metadata.

    Raises:
        InputError: as in `build`.
    """
    rows, rejects = [], []
    lines, failures = Lines.locked(folder / PICTURES, wait=False), Lines(folder / FAILURES)
    try:
        done = {row["id"]: row["image_path"] for _, row in lines.read()}
        failed = {row["id"]: row["reason"] for _, row in failures.read() if not retry_failed}

        def keep(name: str, key: str, path: str, reason: str) -> None:
            row_id = f"{name}/{key}"
            if path:
                lines.append({"id": row_id, "image_path": path})
                done[row_id] = path
            else:
                failures.append({"id": row_id, "reason": reason})
                failed[row_id] = reason

        for name, rule in rules.items():
            wanted = read_metadata(metadata, rule, config["captions"]["field"])
            keys = {key for key in wanted if f"{name}/{key}" not in done and f"{name}/{key}" not in failed}
            if keys:
                tell(f"{name}: {len(keys)} pictures to find")
                places = locate(rule, keys, upstream / name)
                asyncio.run(_take(places, wanted, folder, config, partial(keep, name)))
                for key in sorted(keys):
                    if f"{name}/{key}" not in done and f"{name}/{key}" not in failed:
                        keep(name, key, "", "it does not lie upstream")
            for key, row in wanted.items():
                row_id = f"{name}/{key}"
                if row_id in done:
                    rows.append({"id": row_id, "image_path": done[row_id], "prompt": row.caption})
                else:
                    rejects.append(reject({"id": row_id}, "pictures", failed[row_id]))
    finally:
        lines.close()
        failures.close()
    return rows, rejects


def read_metadata(folder: Path, rule: Mapping[str, Any], field: str) -> dict[str, Row]:
    """The rows of a sub-source by key; of a key that occurs twice the first.

    Raises:
        InputError: a file is missing or damaged, or a line has no image_path, or several texts of which `field` names none.
    """
    rows: dict[str, Row] = {}
    for file in rule["metadata"]:
        path = folder / file
        if not path.is_file():
            raise InputError(f"{path}: there is no such file. Get the metadata: hf download stdKonjac/DIM-T2I --repo-type dataset.")
        for where, row in objects(path):
            check_unicode(json.dumps(row, ensure_ascii=False), where)
            key, caption = _caption(row, field, where)
            rows.setdefault(key, Row(key, caption, row.get("sha256")))
    return rows


def _caption(row: Mapping[str, Any], field: str, where: str) -> tuple[str, str]:
    key = row.get("image_path")
    if not isinstance(key, str) or not key:
        raise InputError(f"{where}: has no image_path. Mend the line.")
    others = [name for name, value in row.items() if isinstance(value, str) and name not in ("image_path", "id", "sha256")]
    if not field and len(others) > 1:
        raise InputError(f"{where}: has several texts, {', '.join(others)}. Name the caption in the config (captions.field).")
    return key, str(row.get(field, "")) if field else str(row[others[0]]) if others else ""


async def _take(
    places: Iterator[Found],
    wanted: Mapping[str, Row],
    folder: Path,
    config: Mapping[str, Any],
    keep: Callable[[str, str, str], None],
) -> None:
    """Tell `keep` key, path and reason of each picture as it comes; one of the last two is empty."""
    loop, limits, reading = asyncio.get_running_loop(), config["pictures"], asyncio.Lock()
    # One thread writes, so that lines do not mix and a slow disk holds up nobody.
    with ThreadPoolExecutor(THREADS) as pool, ThreadPoolExecutor(1) as writer:

        async def work(downloads: Downloads) -> None:
            while True:
                async with reading:  # a table is read in another thread, by one at a time
                    found = await loop.run_in_executor(pool, next, places, None)
                if found is None:
                    return
                path, reason = "", ""
                try:
                    if isinstance(found.place, str):
                        data = await downloads.get(found.place, limits["max_bytes"], wanted[found.key].sha256)
                    else:
                        data = await loop.run_in_executor(pool, found.place.read)
                    path = await loop.run_in_executor(pool, accept, folder, data, limits["min_side"])
                except (DownloadError, InputError) as error:
                    reason = str(error)
                await loop.run_in_executor(writer, keep, found.key, path, reason)

        async with Downloads(config["download"]) as downloads:
            await asyncio.gather(*(work(downloads) for _ in range(config["download"]["concurrency"])))


def accept(folder: Path, data: bytes, min_side: int) -> str:
    """Store a picture that is sound and large enough; returns its path from `folder`.

    Raises:
        InputError: it is not.
    """
    picture = Stored("the file", lambda: data).picture()
    if min(picture.size) < min_side:
        raise InputError(f"too small: {picture.width} x {picture.height} pixels, where each side needs {min_side}")
    return store(folder, data, picture)
