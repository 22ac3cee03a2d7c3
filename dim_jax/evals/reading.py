"""Reading what a benchmark's makers ship: where a file says what, and every missing picture at once."""

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from dim_jax.designer.choice import read_rows
from dim_jax.errors import InputError, check, require_packages
from dim_jax.processing.pictures import read_header
from dim_jax.storage.folders import make_folder, new_file
from dim_jax.storage.local_cache import cache_folder
from dim_jax.storage.paths import read_json


def find_file(data: Path, names: Sequence[str], title: str) -> Path:
    """The file that lists the cases: `data` itself, or the first of `names` in that folder. Raises InputError if there is none."""
    if data.is_file():
        return data
    check(data.is_dir(), f"{data}: there is no such folder. Give {title} as it was downloaded.")
    for name in names:
        if (data / name).is_file():
            return data / name
    raise InputError(f"{data}: has none of {', '.join(names)}. Give {title} as it was downloaded.")


def read_table(path: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Where, key and value of each entry of a JSON object of objects. Raises InputError if the file is damaged, or not such an object."""
    table = read_json(path)
    check(isinstance(table, dict), f"{path}: must be an object with an entry for each case. Download it again.")
    for key, value in table.items():
        check(isinstance(value, dict), f'{path}, entry "{key}": is not an object. Download it again.')
        yield f'{path}, entry "{key}"', key, value


def require_text(row: Mapping[str, Any], key: str, where: str) -> str:
    """A text of a row. Raises InputError if it is missing, not a text, or empty."""
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f'{where}: needs a text "{key}", not {value!r}. Mend the line, or download it again.')
    return value


class PictureFinder:
    """The pictures of a benchmark, by the names that its files give them."""

    def __init__(self, *folders: Path):
        """`folders` are looked through in order."""
        self._folders, self._missing, self._total = folders, list[Path](), 0

    def find(self, name: str, where: str) -> Path:
        """The file of a name. Of a path from elsewhere, such as ./cache/ImgEdit/animal/1.jpg, as much of its end counts as is there.

        Raises:
            InputError: the name leads out of the folder.
        """
        parts = [part for part in PurePosixPath(name).parts if part != "."]
        check(parts and ".." not in parts, f'{where}: "{name}" is not the name of a picture. Mend the line.')
        self._total += 1
        for start in range(len(parts)):
            for folder in self._folders:
                if (path := folder.joinpath(*parts[start:])).is_file():
                    return path
        self._missing.append(self._folders[0].joinpath(*parts))
        return self._missing[-1]

    def check(self) -> None:
        """Refuses a benchmark of which pictures are missing. Raises InputError: how many, and one of them."""
        if self._missing:
            raise InputError(
                f"{len(self._missing)} of {self._total} pictures are missing, such as {self._missing[0]}. "
                f"Put them below {self._folders[0]}."
            )


def read_prompts(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a jsonl as Draw-In-Mind's authors ship them (id, image_path, prompt), and where each stands. Errors as in `read_rows`."""
    for where, row in read_rows(path):
        require_text(row, "prompt", where)
        yield where, row


def read_parquet(data: Path, columns: Sequence[str], title: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each row of all parquet files in a folder (or in its `data`) stands, and the row; pictures as the bytes of their files.

    Raises:
        InputError: there is no such file, it is damaged, or a column is missing.
    """
    require_packages("pyarrow", extra="evaluate", feature="Reading parquet")
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths = sorted(data.glob("*.parquet")) or sorted((data / "data").glob("*.parquet"))
    check(paths, f"{data}: has no parquet file. Give {title} as it was downloaded.")
    for path in paths:
        try:
            with pq.ParquetFile(path) as file:
                if missing := [column for column in columns if column not in file.schema_arrow.names]:
                    raise InputError(f"{path}: has no column {', '.join(missing)}. Give {title} as it was downloaded.")
                batches = file.iter_batches(batch_size=64, columns=list(columns))
                for number, row in enumerate((row for batch in batches for row in batch.to_pylist()), 1):
                    cells = {key: value.get("bytes", value) if isinstance(value, dict) else value for key, value in row.items()}
                    yield f"{path}, row {number}", cells
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path}: cannot be read ({error}). Download it again.") from error


def store_picture(data: bytes, where: str) -> Path:
    """The bytes of a picture as a file that stays: of the same bytes always the same one, below the folder that DIM_JAX_CACHE names, by
    default ~/.cache/dim_jax.

    Raises:
        InputError: it is not a picture (`where` says whose), or nothing can be kept there.
    """
    check(isinstance(data, bytes), f"{where}: has no picture in it. Download it again.")
    suffix = f".{read_header(io.BytesIO(data), where).format.lower()}"
    folder = cache_folder() / "pictures"
    path = folder / f"{hashlib.sha256(data).hexdigest()}{suffix}"
    if not path.is_file():
        make_folder(folder)
        with new_file(path) as scratch:
            scratch.write_bytes(data)
    return path
