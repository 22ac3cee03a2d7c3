"""What was asked and answered, on disk: one JSON object a line, each synced before the next question depends on it.

A killed run leaves whole lines and at most one torn one, which is cut off. Nothing that was paid for is asked again.
"""

import fcntl
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dim_jax.designer.responses import count, replaced
from dim_jax.errors import InputError


def key_of(digests: Sequence[str], instruction: str, designer: str, version: str) -> str:
    """What makes a question: the SHA-256 of each picture's file, the instruction, the designer's name, and the version of our prompt."""
    return hashlib.sha256(json.dumps([*digests, instruction, designer, version]).encode()).hexdigest()


class Lines:
    """A jsonl that only grows."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            folder = os.open(path.parent, os.O_RDONLY)
            os.fsync(folder)  # or the name of a new file might not outlive a power cut
            os.close(folder)
        except OSError as error:
            raise InputError(f"{path}: cannot be opened for writing ({error.strerror}). Choose another output.") from error

    @classmethod
    def locked(cls, path: Path, *, wait: bool) -> "Lines":
        """Kept from other runs until it is closed, or this process ends however it may; `wait` for one that has it, or raise.

        Raises:
            InputError: another run is writing; or the file cannot be opened.
        """
        while True:
            lines = cls(path)
            try:
                fcntl.flock(lines._file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(lines._file)
                raise InputError(f"{path}: another run is writing to it. Wait for it, or choose another output.") from error
            if os.fstat(lines._file).st_nlink:  # the run before may have removed it, empty
                return lines
            lines.close()

    def read(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """The place (bytes from the start) and the object of each line; a torn last line is cut off.

        Raises:
            InputError: a line in the middle is no object.
        """
        with self.path.open("rb") as file:
            place, whole = 0, True
            for number, line in enumerate(file, 1):
                whole = line.endswith(b"\n")
                row = _object(line)
                if row is None and whole:
                    raise InputError(f"{self.path}, line {number}: no JSON object. Remove the line, or choose another output.")
                if row is None:
                    os.ftruncate(self._file, place)
                    return
                yield place, row
                place += len(line)
        if not whole:
            os.write(self._file, b"\n")

    def at(self, place: int) -> dict[str, Any]:
        """The object of the line at a place."""
        with self.path.open("rb") as file:
            file.seek(place)
            return json.loads(file.readline())

    def append(self, *rows: dict[str, Any]) -> int:
        """Write lines and wait until the disk has them; returns the place of the first.

        Raises:
            InputError: the disk is full, or the file cannot be written for another reason.
        """
        # Half a character in a row is written as JSON can say it, so that it reads back the same.
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode(errors="backslashreplace")
        try:
            place = os.fstat(self._file).st_size
            written = os.write(self._file, lines)
            if written < len(lines):
                os.ftruncate(self._file, place)
                raise InputError(f"{self.path}: the disk is full. What is there is kept; free some space and run the same command again.")
            os.fsync(self._file)
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot be written ({error.strerror}). What is there is kept; mend it and run the same command again."
            ) from error
        return place

    def close(self) -> None:
        """Give the lock back; a file without a line goes."""
        status = os.fstat(self._file)
        if status.st_size == 0 and status.st_nlink:
            self.path.unlink()
        os.close(self._file)


class Journal:
    """Answers in `path`, failures with their reasons beside it in `*.failures.jsonl`. Use it in a `with` statement.

    A row of either is the row that was asked for, with `design`: key, designer, prompt version, instruction, tokens, dropped parameters,
    and the model's name where the server says one.
    In answers `prompt` is what was written, such as the blueprint; in failures it is as it was, and `design` holds `reason` and the
    answer's `text`.
    """

    def __init__(self, path: Path, *, wait: bool = False):
        """`wait` for another run that is writing, instead of an error."""
        self.path, self.failures_path, self._wait = path, path.with_name(f"{path.stem}.failures.jsonl"), wait
        self._places: dict[str, int] = {}
        self._reasons: dict[str, str] = {}
        self._answered: set[tuple[str, str]] = set()
        self._failed: dict[str, Counter[str]] = {}
        self.tokens_in = self.tokens_out = 0

    def __enter__(self) -> "Journal":
        """Lock and read what is there.

        Raises:
            InputError: another run is writing, or a line was not written by `dim design`.
        """
        with ExitStack() as opened:
            self._answers = Lines.locked(self.path, wait=self._wait)
            opened.callback(self._answers.close)
            self._failures = Lines(self.failures_path)
            opened.callback(self._failures.close)
            for lines in (self._answers, self._failures):
                for number, (place, row) in enumerate(lines.read(), 1):
                    try:
                        self._known(row["id"], row["design"], place)
                    except (KeyError, TypeError) as error:
                        raise InputError(f"{lines.path}, line {number} was not written by `dim design`. Choose another output.") from error
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def answered(self, key: str, row_id: str) -> bool:
        """Whether this very row has its answer."""
        return (key, row_id) in self._answered

    def failed(self, key: str, row_id: str) -> bool:
        """Whether this very row failed."""
        return row_id in self._failed.get(key, ())

    def attempts(self, key: str) -> int:
        """How often a question failed that was asked under one id."""
        return max(self._failed.get(key, {"": 0}).values())

    def answer(self, key: str) -> str | None:
        """The answer to a question, under whatever id it was asked."""
        return replaced(self._answers.at(self._places[key])["prompt"]) if key in self._places else None

    def reason(self, key: str) -> str | None:
        """Why a question failed; None if it did not, or was answered later."""
        return None if key in self._places else self._reasons.get(key)

    def add(self, row: dict[str, Any], text: str | None, design: dict[str, Any]) -> None:
        """Keep an answer, or a failure (without a text). Errors as in `Lines.append`."""
        lines = self._failures if text is None else self._answers
        place = lines.append(row | ({} if text is None else {"prompt": text}) | {"design": design})
        self._known(row["id"], design, place)

    def _known(self, row_id: str, design: dict[str, Any], place: int) -> None:
        key = design["key"]
        if "reason" in design:
            self._reasons[key] = design["reason"]
            self._failed.setdefault(key, Counter())[row_id] += 1
        else:
            self._places.setdefault(key, place)
            self._answered.add((key, row_id))
        self.tokens_in += count(design["tokens_in"]) or 0
        self.tokens_out += count(design["tokens_out"]) or 0


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None
