"""Samples that could not be used, within a budget of all processes: each is listed once, and one too many stops the run."""

import json
from collections.abc import Iterator

from dim_jax import processes
from dim_jax.data.pipeline import BadSample, Loaded
from dim_jax.errors import InputError
from dim_jax.storage.folders import append
from dim_jax.storage.paths import AnyPath


class BadSamples:
    """The list in a jsonl file that grows, and outlives the run.

    Args:
        path: the file; it is made with the first bad sample.
        budget: how many rows may be bad, of all rounds together, held-out ones among them.

    Raises:
        InputError: the file is damaged.
    """

    def __init__(self, path: AnyPath, budget: int):
        self.path, self._budget = path, budget
        self._known = set(_read(path)) if path.exists() else set()
        self.new: list[BadSample] = []

    def __len__(self) -> int:
        return len(self._known)

    def watch(self, stream: Iterator[Loaded]) -> Iterator[Loaded]:
        """The same batches; the rows of which others stand in for are kept for `settle`."""
        for loaded in stream:
            self.new += loaded.bad
            yield loaded

    def flush(self) -> None:
        """List what all processes met since they were last asked. All must ask at the same step.

        Raises:
            InputError: the budget is spent; names the file and line of the last row.
        """
        new = [BadSample(*said) for one in processes.gather(self.new) for said in one]
        self.new.clear()
        for sample in new:
            self._add(sample)
        if len(self) > self._budget:
            said = f"{len(self)} rows cannot be used, but data.bad_samples allows {self._budget}"
            raise InputError(f"{said}.{f' The last: {new[-1].error}' if new else ''} All are listed in {self.path}.")

    def _add(self, sample: BadSample) -> None:
        name = (sample.source, sample.row)
        if name in self._known:
            return
        self._known.add(name)
        if processes.is_first():
            append(self.path, json.dumps(sample._asdict(), ensure_ascii=False) + "\n")


def _read(path: AnyPath) -> Iterator[tuple[str, int]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            fields = json.loads(line)
            yield fields["source"], fields["row"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise InputError(f"{path}, line {number}: is not a bad sample ({error}). Remove the line.") from error
