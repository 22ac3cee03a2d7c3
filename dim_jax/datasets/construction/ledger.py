"""The state of the rows of a build, in a temporary SQLite file: millions of keys do not fit into memory."""

import sqlite3
from collections.abc import Iterable, Iterator
from threading import Lock

PAGE = 1000  # keys that are read at once
TABLE = """
CREATE TABLE rows (name TEXT, key TEXT, number INTEGER, sha256 TEXT, path TEXT DEFAULT '', reason TEXT DEFAULT '', found INTEGER DEFAULT 0,
PRIMARY KEY (name, key)) WITHOUT ROWID
"""


class Ledger:
    """Rows by the name of their sub-source and their key, for any thread."""

    def __init__(self):
        self._lock, self._file = Lock(), sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._file.execute("PRAGMA synchronous = OFF")
        self._file.execute(TABLE)

    def query(self, command: str, *values: object) -> list[tuple]:
        """The rows of an SQL query."""
        with self._lock:
            return self._file.execute(command, values).fetchall()

    def execute(self, command: str, *values: object) -> int:
        """The number of rows that an SQL command changed."""
        with self._lock:
            return self._file.execute(command, values).rowcount

    def close(self) -> None:
        """Close and remove the file."""
        self._file.close()

    def add(self, name: str, rows: Iterable[tuple[str, object]]) -> None:
        """Rows of a sub-source, by key and checksum; of a key that occurs twice the first."""
        numbered = ((name, key, number, str(sha256 or "")) for number, (key, sha256) in enumerate(rows))
        with self._lock, self._file:
            self._file.execute("BEGIN")
            self._file.executemany("INSERT OR IGNORE INTO rows (name, key, number, sha256) VALUES (?, ?, ?, ?)", numbered)

    def record(self, name: str, key: str, *, path: str = "", reason: str = "") -> None:
        """Save the path of a row's picture, or the reason why there is none."""
        self.execute("UPDATE rows SET path = ?, reason = ?, found = 1 WHERE name = ? AND key = ? AND path = ''", path, reason, name, key)

    def outcome(self, name: str, key: str) -> tuple[int, str, str]:
        """The number of a row's first line, its path, and the reason why it has none."""
        ((number, path, reason),) = self.query("SELECT number, path, reason FROM rows WHERE name = ? AND key = ?", name, key)
        return number, path, reason


class MissingKeys:
    """The keys of a sub-source without a picture, a reason or a location, in order."""

    def __init__(self, ledger: Ledger, name: str):
        self._ledger, self._name = ledger, name

    def __len__(self) -> int:
        return self._ledger.query("SELECT COUNT(*) FROM rows WHERE name = ? AND found = 0", self._name)[0][0]

    def __iter__(self) -> Iterator[str]:
        last, page = "", [("",)]
        command = "SELECT key FROM rows WHERE name = ? AND key > ? AND found = 0 ORDER BY key LIMIT ?"
        while page:
            page = self._ledger.query(command, self._name, last, PAGE)
            for (last,) in page:
                yield last

    def claim(self, key: str) -> bool:
        """Whether a key is missing; from now on it is not."""
        return self._ledger.execute("UPDATE rows SET found = 1 WHERE name = ? AND key = ? AND found = 0", self._name, key) > 0

    def sha256(self, key: str) -> str:
        """The published checksum, or nothing."""
        return self._ledger.query("SELECT sha256 FROM rows WHERE name = ? AND key = ?", self._name, key)[0][0]
