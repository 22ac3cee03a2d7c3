"""One run at a time: who writes to a folder keeps other runs out of it until it ends, however it ends.

On this machine, and on file systems that several share, the lock is one of the kernel (flock): it is gone with its process, also after a
kill. A bucket has none. There it is a lease, an object that its holder writes anew every `REFRESH` seconds, always on condition that it is
the one that it wrote before. One that nobody has written for `STALE` seconds is of a run that was killed, and is taken over; who finds a
lease watches it for as long. One whose holder was a process of this very machine that is no more is taken over at once.
"""

import errno
import fcntl
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote
from uuid import uuid4

from dim_jax.errors import InputError
from dim_jax.storage.paths import GS, AnyPath, absolute, is_remote, storage, storage_errors

REFRESH, STALE = 10.0, 60.0  # seconds
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)  # of file systems that cannot lock
_HELD: ContextVar[frozenset[str]] = ContextVar("held", default=frozenset())


@contextmanager
def lock_folder(folder: AnyPath) -> Iterator[None]:
    """Keep other runs from a folder that is written to bit by bit; it is made.

    Raises:
        InputError: another run holds it, it cannot be made, or a bucket is out of reach.
    """
    with _alone(folder / ".lock", folder):
        yield


@contextmanager
def lock_output(target: AnyPath) -> Iterator[None]:
    """Keep other runs from making the same file or folder, which need not be there yet. What this thread holds it may ask for again.

    Raises:
        InputError: as `lock_folder`, of the folder that it lies in.
    """
    target = absolute(target)
    with _alone(target.with_name(f".{target.name}.lock"), target):
        yield


@contextmanager
def _alone(lock: AnyPath, what: AnyPath) -> Iterator[None]:
    name = os.fspath(absolute(lock))
    if name in _HELD.get():
        yield
        return
    token = _HELD.set(_HELD.get() | {name})
    try:
        with _lease(lock, what) if is_remote(lock) else _file_lock(Path(lock), what):
            yield
    finally:
        _HELD.reset(token)


@contextmanager
def _file_lock(lock: Path, what: AnyPath) -> Iterator[None]:
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = _locked(lock, what)
    except OSError as error:
        raise InputError(f"{what}: cannot be made ({error.strerror}). Choose an output folder that you may write to.") from error
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(file)


def _locked(lock: Path, what: AnyPath) -> int:
    """The lock's file, opened and locked, with the name of this process in it."""
    while True:
        file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        with ExitStack() as failed:
            failed.callback(os.close, file)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise _taken(what, _Holder.read(os.read(file, 1000))) from error
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                print(f"{what}: its file system has no locks ({error.strerror}); see that no other run writes to it", file=sys.stderr)
            if os.fstat(file).st_nlink:  # the holder before may have removed it at its end
                with suppress(OSError):  # a full disk: the name is only for the error of another run
                    os.ftruncate(file, 0)
                    os.write(file, _Holder.this().text())
                failed.pop_all()
                return file


@contextmanager
def _lease(lock: AnyPath, what: AnyPath) -> Iterator[None]:
    lease, closed = _Lease(lock, what), threading.Event()
    lease.take()
    keeper = threading.Thread(target=lease.keep, args=(closed,), name="lease", daemon=True)
    keeper.start()
    try:
        yield
    finally:
        closed.set()
        keeper.join()
        lease.give_back()


class _Lease:
    """The object in a bucket; its generation, which changes with every writing, is what it is watched and replaced by."""

    def __init__(self, lock: AnyPath, what: AnyPath):
        self._path, self._what, self._me, self._generation = os.fspath(lock), what, _Holder.this(), 0

    def take(self) -> None:
        """Raises InputError where another run writes it while it is watched."""
        seen, since = None, 0.0
        while True:
            generation, holder = self._read()
            if generation != seen:
                if seen is not None and generation:
                    raise _taken(self._what, holder)
                seen, since = generation, time.monotonic()
            if not generation or holder.is_gone() or time.monotonic() - since >= STALE:
                if self._write(generation):
                    return
            elif time.monotonic() - since < 1:
                print(f"{self._what}: held by {holder.name}; watching for {STALE:g} s whether it still writes to it", file=sys.stderr)
            time.sleep(1)

    def keep(self, closed: threading.Event) -> None:
        while not closed.wait(REFRESH):
            with suppress(InputError):  # out of reach for now
                if not self._write(self._generation):
                    print(f"error: {_taken(self._what, self._read()[1])} This one ends.", file=sys.stderr, flush=True)
                    os._exit(1)  # before it writes anything more

    def give_back(self) -> None:
        with suppress(InputError), storage_errors(self._path):
            self._call("DELETE", "b/{}/o/{}", *self._names, ifGenerationMatch=str(self._generation))

    def _read(self) -> tuple[int, "_Holder"]:
        """Generation and content; 0: there is none."""
        with storage_errors(self._path):
            try:
                found = self._call("GET", "b/{}/o/{}", *self._names, json_out=True)
                return int(found["generation"]), _Holder.read(storage(self._path).cat_file(self._path))
            except FileNotFoundError:
                return 0, _Holder.read(b"")

    def _write(self, generation: int) -> bool:
        """Replace one of this generation (0: none), and say whether it was still there."""
        bucket, name = self._names
        files = storage(self._path)
        address = f"{files._location}/upload/storage/v1/b/{quote(bucket)}/o"  # gcsfs has no other way to a condition
        how = {"uploadType": "multipart", "ifGenerationMatch": str(generation), "json_out": True}
        kind, parts = "Content-Type: application/json\r\n\r\n", (json.dumps({"name": name}), self._me.text().decode())
        body = "".join(f"--part\r\n{kind}{part}\r\n" for part in parts) + "--part--"
        headers = {"Content-Type": 'multipart/related; boundary="part"'}
        with storage_errors(self._path):
            try:
                self._generation = int(files.call("POST", address, data=body.encode(), headers=headers, **how)["generation"])
            except FileExistsError:  # of another generation, which may be by the first try of a request that was sent twice
                self._generation, holder = self._read()
                return holder == self._me
        return True

    def _call(self, *request: Any, **options: Any) -> Any:
        return storage(self._path).call(*request, **options)

    @property
    def _names(self) -> tuple[str, str]:
        bucket, _, name = self._path.removeprefix(GS).partition("/")
        return bucket, name


class _Holder(NamedTuple):
    """Who holds a lock. `machine` is empty where processes cannot be told apart."""

    name: str
    pid: int
    machine: str
    token: str

    @classmethod
    def this(cls) -> "_Holder":
        machine = ""
        with suppress(OSError):  # Linux alone has these: which boot of which machine, and whose numbers of processes
            machine = Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
        return cls(f"process {os.getpid()} on {socket.gethostname()}", os.getpid(), machine, uuid4().hex)

    @classmethod
    def read(cls, text: bytes) -> "_Holder":
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):  # torn, or not yet written
            return cls("another run", 0, "", "")

    def text(self) -> bytes:
        return json.dumps(self._asdict()).encode()

    def is_gone(self) -> bool:
        """Whether it was a process of this machine that is no more."""
        if not self.machine or self.machine != _Holder.this().machine:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # of another user
            return False
        return False


def _taken(what: AnyPath, holder: _Holder) -> InputError:
    return InputError(f"{what}: {holder.name} is writing to it. Wait until it ends, or choose another output.")
