"""Training states on disk: Orbax writes them asynchronously and atomically."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint.experimental.v1 as ocp

from dim_jax.errors import InputError
from dim_jax.storage.disk import describe_os_error, format_bytes
from dim_jax.storage.folders import write_errors
from dim_jax.storage.orbax import disk_error, orbax_path, quiet_orbax
from dim_jax.storage.paths import AnyPath, is_remote


class SavedState(NamedTuple):
    """A state and its notes."""

    state: Any
    notes: Mapping[str, Any]


class TrainingStates:
    """The states of a run by step."""

    def __init__(self, folder: AnyPath, checkpointer: ocp.training.Checkpointer):
        self._folder, self._checkpointer, self._saving = folder, checkpointer, False
        self._needs = 0  # bytes of a state

    def restore(self, abstract_state: Any) -> SavedState | None:
        """The latest state, in the shape, dtype and sharding of `abstract_state`, from any mesh; or None.

        Raises:
            InputError: the latest state is damaged, or of another model.
        """
        latest = self._checkpointer.latest
        if latest is None:
            return None
        folder = self._folder / str(latest.step)
        return SavedState(read_state(folder, abstract_state), read_notes(folder))

    def save(self, step: int, state: Any, notes: Mapping[str, Any]) -> None:
        """Copy the state and write it asynchronously, with notes for JSON; waits for the last write.

        Raises:
            InputError: this state or the last one cannot be written, such as on a full disk; earlier ones are complete.
        """
        self._needs = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        with self.write_errors():
            self._checkpointer.save_async(step, state, custom_metadata=dict(notes))
        self._saving = True

    def check_write(self) -> None:
        """Between two steps: raises InputError, as `save`, if the last write has failed."""
        if self._saving and not self._checkpointer.is_saving_in_progress():
            self._saving = False
            with self.write_errors():
                self._checkpointer.wait()

    @contextmanager
    def write_errors(self) -> Iterator[None]:
        """Turns errors of the file system, which may come long after the write started, into an InputError."""
        try:
            yield
        except (OSError, ValueError) as error:
            of_disk = error if isinstance(error, OSError) else disk_error(error)
            if of_disk is None:
                raise
            reason = describe_os_error(of_disk, self._folder) if isinstance(self._folder, Path) else of_disk.strerror
            needs = f"; a state takes {format_bytes(self._needs)}" if self._needs else ""
            raise InputError(
                f"{self._folder}: a state cannot be written ({reason}{needs}). Earlier states are complete: free some space there, or "
                "make it writable, and run the same command again, which continues after the last one."
            ) from error


def read_state(folder: AnyPath, abstract_state: Any) -> Any:
    """The state in checkpoints/STEP, as from `TrainingStates.restore`; the run may be writing others meanwhile.

    Raises:
        InputError: it is damaged, or of another model.
    """
    path = orbax_path(folder)
    with _read_errors(folder):
        return ocp.load(path, abstract_state)


def read_notes(folder: AnyPath) -> Mapping[str, Any]:
    """The notes of the state in checkpoints/STEP.

    Raises:
        InputError: it is damaged.
    """
    path = orbax_path(folder)
    with _read_errors(folder):
        notes: Any = ocp.metadata(path).custom_metadata
    return notes or {}


@contextmanager
def _read_errors(folder: AnyPath) -> Iterator[None]:
    try:
        with quiet_orbax():
            yield
    except (ValueError, OSError, KeyError, ocp.errors.InvalidLayoutError) as error:
        if not _is_merged(folder) and any((folder / "state").glob("ocdbt.process_*")):
            raise InputError(
                f"{folder}: its arrays were never merged, as happened in folders with brackets in their names. If one "
                "process wrote it, copy all files of state/ocdbt.process_0/ to state/, and continue."
            ) from error
        raise InputError(
            f"{folder}: is damaged, or of another model. Move it elsewhere to continue from the last one, or use another workdir."
        ) from error


def _is_merged(folder: AnyPath) -> bool:
    """Whether a state has the file that Orbax writes after it has merged the processes' files."""
    return (folder / "state" / "manifest.ocdbt").exists()


def is_state(path: AnyPath) -> bool:
    """Whether a path is a training state, WORKDIR/checkpoints/STEP."""
    return path.name.isdecimal() and path.parent.name == "checkpoints" and path.is_dir()


def latest_step(folder: AnyPath) -> int:
    """The step of the latest complete state; 0 without one."""
    states = [path for path in folder.glob("*") if path.name.isdecimal()]
    # In a bucket a state has its name from the start, and is complete when this file exists.
    return max((int(path.name) for path in states if not is_remote(path) or (path / "commit_success.txt").exists()), default=0)


@contextmanager
def training_states(folder: AnyPath, *, keep: int, keep_every: int) -> Iterator[TrainingStates]:
    """Open the states in `folder`; waits for the last write at the end.

    Keeps the latest `keep`, and multiples of `keep_every` (0: none).

    Raises:
        InputError: the folder cannot hold states; or, at the end, the latest one is incomplete.
    """
    policies = ocp.training.preservation_policies
    save_policy: Any = ocp.training.save_decision_policies.FixedIntervalPolicy(1)  # whenever it is called
    to_keep: Any = policies.AnyPreservationPolicy([policies.LatestN(keep), *([policies.EveryNSteps(keep_every)] if keep_every else [])])
    with quiet_orbax():  # until the end: it logs from threads of its own, too
        with write_errors(folder):
            checkpointer = ocp.training.Checkpointer(
                orbax_path(folder), save_decision_policy=save_policy, preservation_policy=to_keep, cleanup_tmp_directories=True
            )
        states = TrainingStates(folder, checkpointer)
        try:
            yield states
        finally:
            with states.write_errors():
                checkpointer.close()
    if (step := latest_step(folder)) and not _is_merged(folder / str(step)):
        raise InputError(f"{folder / str(step)}: was written, but its arrays are not there. Use another workdir.")
