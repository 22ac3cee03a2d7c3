"""The loss log: one JSON object a line, which a resumed run continues as if it had never stopped."""

import json
from collections.abc import Mapping
from pathlib import Path

from dim_jax.errors import InputError
from dim_jax.folders import new_file


class Log:
    """Appends to `path`; what was logged after step `after` (by a run that was killed behind its last checkpoint) is dropped."""

    def __init__(self, path: Path, *, after: int):
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for number, line in enumerate(lines, 1) if _step(path, number, line, len(lines)) <= after]
        with new_file(path) as scratch:
            scratch.write_text("".join(line + "\n" for line in kept))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values of a step, rounded to six digits."""
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step} | {name: float(f"{value:.6g}") for name, value in values.items()}) + "\n")


def _step(path: Path, number: int, line: str, lines: int) -> float:
    """The step of a line; a last line that was cut off by a kill counts as later than all."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError) as error:
        if number == lines:
            return float("inf")
        raise InputError(f"{path}, line {number}: is no log line ({error}). Remove the line, or use another workdir.") from error
