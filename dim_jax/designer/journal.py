"""Requests and answers on disk: one JSON object a line, each synced before the next request.

A killed run leaves complete lines and at most one torn line, which is removed. Nothing is paid for twice.
"""

import errno
import fcntl
import hashlib
import json
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dim_jax.designer.responses import replace_surrogates, token_count
from dim_jax.errors import InputError
from dim_jax.storage.jsonl import json_loads
from dim_jax.storage.paths import read_errors


def request_key(digests: Sequence[str], instruction: str, designer: str, version: str) -> str:
    """The key of a request: a hash of each picture's SHA-256, the instruction, the designer's name, and the version of our prompt."""
    return hashlib.sha256(json.dumps([*digests, instruction, designer, version]).encode()).hexdigest()


class JsonlLog:
    """An append-only jsonl."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK, 0o644)
            folder = os.open(path.parent, os.O_RDONLY)
            os.fsync(folder)  # or a new file might be lost in a power cut
            os.close(folder)
            if not stat.S_ISREG(os.fstat(self._file).st_mode):
                raise OSError(errno.EINVAL, "it is not an ordinary file")
        except OSError as error:
            raise InputError(f"{path}: cannot be opened for writing ({error.strerror}). Choose another output.") from error

    @classmethod
    def locked(cls, path: Path, *, wait: bool) -> "JsonlLog":
        """Locked against other runs until it is closed or this process ends; `wait` for another run, or raise.

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
            if os.fstat(lines._file).st_nlink:  # the run before may have removed the empty file
                return lines
            lines.close()

    def read(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """The offset in bytes and the object of each line; a torn last line is removed.

        Raises:
            InputError: a line in the middle is not an object.
        """
        with self.path.open("rb") as file, read_errors(self.path):
            offset, complete = 0, True
            for number, line in enumerate(file, 1):
                complete = line.endswith(b"\n")
                row = _object(line)
                if row is None and (complete or line.strip(b"\0")[:1] not in (b"{", b"")):  # torn lines are of ours, which begin so
                    raise InputError(f"{self.path}, line {number}: is not a JSON object. Remove the line, or choose another output.")
                if row is None:
                    os.ftruncate(self._file, offset)
                    return
                yield offset, row
                offset += len(line)
        if not complete:
            os.write(self._file, b"\n")

    def read_at(self, offset: int) -> dict[str, Any]:
        """The object of the line at an offset."""
        with self.path.open("rb") as file:
            file.seek(offset)
            return json.loads(file.readline())

    def append(self, *rows: dict[str, Any]) -> int:
        """Write and sync lines; returns the offset of the first.

        Raises:
            InputError: the disk is full, or the file cannot be written for another reason.
        """
        # A lone surrogate is written as a JSON escape, so that it reads back the same.
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode(errors="backslashreplace")
        try:
            offset = os.fstat(self._file).st_size
            count = os.write(self._file, lines)
            if count < len(lines):
                os.ftruncate(self._file, offset)
                raise InputError(f"{self.path}: the disk is full. Finished lines are kept; free some space and run the same command again.")
            os.fsync(self._file)
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot be written ({error.strerror}). Finished lines are kept; correct that and run the same command again."
            ) from error
        return offset

    def close(self) -> None:
        """Release the lock; an empty file is removed."""
        status = os.fstat(self._file)
        if status.st_size == 0 and status.st_nlink:
            self.path.unlink()
        os.close(self._file)


class Journal:
    """Answers in `path`, failures with their reasons beside it in `*.failures.jsonl`. Use it in a `with` statement.

    Each row is the input row with `design`: key, designer, prompt version, instruction, tokens, dropped parameters,
    and the model's name if the server sends one.
    In answers `prompt` is the answer, such as the blueprint; in failures it is unchanged, and `design` has `reason` and the
    answer's `text`.
    """

    def __init__(self, path: Path, *, wait: bool = False):
        """`wait` for another run that is writing, instead of an error."""
        self.path, self.failures_path, self._wait = path, path.with_name(f"{path.stem}.failures.jsonl"), wait
        self._offsets: dict[str, int] = {}
        self._reasons: dict[str, str] = {}
        self._answered: set[tuple[str, str]] = set()
        self._failed: dict[str, Counter[str]] = {}
        self.tokens_in = self.tokens_out = 0

    def __enter__(self) -> "Journal":
        """Lock the file and read its lines. Raises InputError if another run is writing, or a line was not written by `dim design`."""
        with ExitStack() as opened:
            self._answers = JsonlLog.locked(self.path, wait=self._wait)
            opened.callback(self._answers.close)
            self._failures = JsonlLog(self.failures_path)
            opened.callback(self._failures.close)
            for lines in (self._answers, self._failures):
                for number, (offset, row) in enumerate(lines.read(), 1):
                    try:
                        if lines is self._answers and not isinstance(row["prompt"], str):
                            raise TypeError("an answer is a text")
                        self._index(row["id"], row["design"], offset)
                    except (KeyError, TypeError) as error:
                        raise InputError(f"{lines.path}, line {number} was not written by `dim design`. Choose another output.") from error
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def has_answer(self, key: str, row_id: str) -> bool:
        """Whether this row has an answer."""
        return (key, row_id) in self._answered

    def has_failed(self, key: str, row_id: str) -> bool:
        """Whether this row failed."""
        return row_id in self._failed.get(key, ())

    def attempts(self, key: str) -> int:
        """How often a request failed, at most, under one id."""
        return max(self._failed.get(key, {"": 0}).values())

    def answer(self, key: str) -> str | None:
        """The answer to a request, under any id."""
        return replace_surrogates(self._answers.read_at(self._offsets[key])["prompt"]) if key in self._offsets else None

    def reason(self, key: str) -> str | None:
        """Why a request failed; None if it did not, or was answered later."""
        return None if key in self._offsets else self._reasons.get(key)

    def add(self, row: dict[str, Any], text: str | None, design: dict[str, Any]) -> None:
        """Save an answer, or a failure (without a text). Errors as in `JsonlLog.append`."""
        lines = self._failures if text is None else self._answers
        offset = lines.append(row | ({} if text is None else {"prompt": text}) | {"design": design})
        self._index(row["id"], design, offset)

    def _index(self, row_id: str, design: dict[str, Any], offset: int) -> None:
        key = design["key"]
        if "reason" in design:
            self._reasons[key] = str(design["reason"])
            self._failed.setdefault(key, Counter())[row_id] += 1
        else:
            self._offsets.setdefault(key, offset)
            self._answered.add((key, row_id))
        self.tokens_in += token_count(design["tokens_in"]) or 0
        self.tokens_out += token_count(design["tokens_out"]) or 0


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        row = json_loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None
