"""Lines of JSON that people write, with the file and the number of the line in every error."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dim_jax.errors import InputError


def values(path: Path, *, torn: bool = False) -> Iterator[tuple[str, Any]]:
    """The value of each line that is not blank, and where it stands, for errors. If it may be `torn`, a last line without its end, as a
    killed writer leaves it, is left out.

    Raises:
        InputError: the file cannot be read, or a line is no JSON.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip() and not (torn and not line.endswith(b"\n")):
                    yield f"{path}, line {number}", json.loads(line.decode())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}). Give a jsonl in UTF-8.") from error
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits, or thousands of brackets
        raise InputError(f"{path}, line {number}: no JSON ({error}). Write one object on each line.") from error


def objects(path: Path, *, torn: bool = False) -> Iterator[tuple[str, dict]]:
    """The same of a file whose lines are objects.

    Raises:
        InputError: as `values`, or a line is no object.
    """
    for where, value in values(path, torn=torn):
        if not isinstance(value, dict):
            raise InputError(f"{where}: is no object. Write one on each line.")
        yield where, value
