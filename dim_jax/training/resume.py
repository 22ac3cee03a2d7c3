"""Training states on disk, to go on from: Orbax writes them while training goes on, whole or not at all."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint.experimental.v1 as ocp

from dim_jax.errors import InputError
from dim_jax.storage.disk import describe_os_error, format_bytes
from dim_jax.storage.folders import writing
from dim_jax.storage.orbax import disk_error, orbax_path, quiet_orbax
from dim_jax.storage.paths import AnyPath, is_remote


class Restored(NamedTuple):
    """A state, and what was noted beside it."""

    state: Any
    notes: Mapping[str, Any]


class TrainingStates:
    """The numbered states of one run; the step is the state's name."""

    def __init__(self, folder: AnyPath, checkpointer: ocp.training.Checkpointer):
        self._folder, self._checkpointer, self._saving = folder, checkpointer, False
        self._needs = 0  # bytes of a state

    def restore(self, like: Any) -> Restored | None:
        """The latest state, in the shape, dtype and sharding of `like` (abstract arrays), whatever mesh it was saved from; or None.

        Raises:
            InputError: the latest state is damaged, or of another model.
        """
        latest = self._checkpointer.latest
        if latest is None:
            return None
        folder = self._folder / str(latest.step)
        return Restored(read_state(folder, like), read_notes(folder))

    def save(self, step: int, state: Any, notes: Mapping[str, Any]) -> None:
        """Copy the state and write it, with notes that JSON can hold, while training goes on; waits for the state before it.

        Raises:
            InputError: this state or the one before cannot be written, such as on a full disk; those before them are whole.
        """
        self._needs = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        with self.written():
            self._checkpointer.save_async(step, state, custom_metadata=dict(notes))
        self._saving = True

    def settle(self) -> None:
        """Between two steps: raises InputError, as `save`, if what was being written has failed."""
        if self._saving and not self._checkpointer.is_saving_in_progress():
            self._saving = False
            with self.written():
                self._checkpointer.wait()

    @contextmanager
    def written(self) -> Iterator[None]:
        """Where a file system refuses a state, which may be long after it was asked, one InputError."""
        try:
            yield
        except (OSError, ValueError) as error:
            of_disk = error if isinstance(error, OSError) else disk_error(error)
            if of_disk is None:
                raise
            reason = describe_os_error(of_disk, self._folder) if isinstance(self._folder, Path) else of_disk.strerror
            needs = f"; a state takes {format_bytes(self._needs)}" if self._needs else ""
            raise InputError(
                f"{self._folder}: a state cannot be written ({reason}{needs}). Those that are there are whole: free some space there, or "
                "make it writable, and run the same command again, which goes on after the last one."
            ) from error


def read_state(folder: AnyPath, like: Any) -> Any:
    """The state in checkpoints/STEP, as `TrainingStates.restore` gives it; a run may go on writing others meanwhile.

    Raises:
        InputError: it is damaged, or of another model.
    """
    path = orbax_path(folder)
    with _whole(folder):
        return ocp.load(path, like)


def read_notes(folder: AnyPath) -> Mapping[str, Any]:
    """What was noted beside the state in checkpoints/STEP.

    Raises:
        InputError: it is damaged.
    """
    path = orbax_path(folder)
    with _whole(folder):
        notes: Any = ocp.metadata(path).custom_metadata
    return notes or {}


@contextmanager
def _whole(folder: AnyPath) -> Iterator[None]:
    try:
        with quiet_orbax():
            yield
    except (ValueError, OSError, KeyError, ocp.errors.InvalidLayoutError) as error:
        if not _is_joined(folder) and any((folder / "state").glob("ocdbt.process_*")):
            raise InputError(
                f"{folder}: its arrays are there, but were never joined, as happened in folders with brackets in their names. Where one "
                "process wrote it, copy all that is in state/ocdbt.process_0/ to state/, and go on."
            ) from error
        raise InputError(
            f"{folder}: is damaged, or of another model. Move it elsewhere to go on from the one before, or use another workdir."
        ) from error


def _is_joined(folder: AnyPath) -> bool:
    """Whether a state has the file that Orbax writes once it has joined what each process wrote."""
    return (folder / "state" / "manifest.ocdbt").exists()


def is_state(path: AnyPath) -> bool:
    """Whether a path is a training state, WORKDIR/checkpoints/STEP."""
    return path.name.isdecimal() and path.parent.name == "checkpoints" and path.is_dir()


def latest_step(folder: AnyPath) -> int:
    """The step of the latest whole state; 0 without one."""
    states = [path for path in folder.glob("*") if path.name.isdecimal()]
    # In a bucket a state has its name from the start, and is whole when this file is there.
    return max((int(path.name) for path in states if not is_remote(path) or (path / "commit_success.txt").exists()), default=0)


@contextmanager
def training_states(folder: AnyPath, *, keep: int, keep_every: int) -> Iterator[TrainingStates]:
    """Open (or begin) the states in `folder`; the last write is finished at the end.

    The latest `keep` stay, and those at multiples of `keep_every` (0: none).

    Raises:
        InputError: the folder cannot hold states; or, at the end, the latest one is not there.
    """
    policies = ocp.training.preservation_policies
    every: Any = ocp.training.save_decision_policies.FixedIntervalPolicy(1)  # whenever it is called
    kept: Any = policies.AnyPreservationPolicy([policies.LatestN(keep), *([policies.EveryNSteps(keep_every)] if keep_every else [])])
    with quiet_orbax():  # until the end: it logs from threads of its own, too
        with writing(folder):
            checkpointer = ocp.training.Checkpointer(
                orbax_path(folder), save_decision_policy=every, preservation_policy=kept, cleanup_tmp_directories=True
            )
        states = TrainingStates(folder, checkpointer)
        try:
            yield states
        finally:
            with states.written():
                checkpointer.close()
    if (step := latest_step(folder)) and not _is_joined(folder / str(step)):
        raise InputError(f"{folder / str(step)}: was written, but its arrays are not there. Use another workdir.")
