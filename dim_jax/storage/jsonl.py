"""JSON of others: a text, and jsonl files that people write, whose errors name the file and the line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dim_jax.errors import InputError, check


def json_loads(text: str | bytes, **options: Any) -> Any:
    """`json.loads`, of texts that may be anything.

    Raises:
        ValueError: it is not JSON, or its brackets are nested deeper than Python reads them (its own error is a RecursionError).
    """
    try:
        return json.loads(text, **options)
    except RecursionError as error:
        raise ValueError("its brackets are nested too deeply") from error


def read_values(path: Path, *, skip_torn: bool = False) -> Iterator[tuple[str, Any]]:
    """The position (for errors) and the value of each line that is not blank. `skip_torn`: skip a last line without its end, which a killed
    writer leaves.

    Raises:
        InputError: the file cannot be read, or a line is not JSON.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip() and not (skip_torn and not line.endswith(b"\n")):
                    yield f"{path}, line {number}", json_loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}). Give a jsonl in UTF-8.") from error
    except ValueError as error:  # also a number of thousands of digits
        raise InputError(f"{path}, line {number}: is not JSON ({error}). Write one object on each line.") from error


def read_objects(path: Path, *, skip_torn: bool = False) -> Iterator[tuple[str, dict]]:
    """The same for a file whose lines are objects.

    Raises:
        InputError: as `values`, or a line is not an object.
    """
    for where, value in read_values(path, skip_torn=skip_torn):
        check(isinstance(value, dict), f"{where}: is not an object. Write one object on each line.")
        yield where, value
