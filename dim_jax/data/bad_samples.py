"""The list of samples that cannot be used. All processes share a budget; a run stops when there are more."""

import json
from collections.abc import Iterator

from dim_jax import processes
from dim_jax.data.pipeline import BadSample, LoadedBatch
from dim_jax.errors import InputError
from dim_jax.storage.folders import append
from dim_jax.storage.paths import AnyPath


class BadSamples:
    """A list in a jsonl file, to which later runs add.

    Args:
        path: the file; the first bad sample creates it.
        budget: how many rows may be bad, over all epochs and with held-out rows.

    Raises:
        InputError: the file is damaged.
    """

    def __init__(self, path: AnyPath, budget: int):
        self.path, self._budget = path, budget
        self._listed = set(_read(path)) if path.exists() else set()
        self.new: list[BadSample] = []

    def __len__(self) -> int:
        return len(self._listed)

    def watch(self, stream: Iterator[LoadedBatch]) -> Iterator[LoadedBatch]:
        """The same batches; their bad samples are collected for `flush`."""
        for loaded in stream:
            self.new += loaded.bad
            yield loaded

    def flush(self) -> None:
        """List the bad samples of all processes since the last call. All processes must call it at the same step.

        Raises:
            InputError: there are more than `budget`; names the last of them.
        """
        new = [BadSample(*fields) for samples in processes.gather(self.new) for fields in samples]
        self.new.clear()
        for sample in new:
            self._add(sample)
        if len(self) > self._budget:
            message = f"{len(self)} rows cannot be used, but data.bad_samples allows {self._budget}"
            raise InputError(f"{message}.{f' The last: {new[-1].error}' if new else ''} All are listed in {self.path}.")

    def _add(self, sample: BadSample) -> None:
        name = (sample.source, sample.row)
        if name in self._listed:
            return
        self._listed.add(name)
        if processes.is_first():
            append(self.path, json.dumps(sample._asdict(), ensure_ascii=False) + "\n")


def _read(path: AnyPath) -> Iterator[tuple[str, int]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            fields = json.loads(line)
            yield fields["source"], fields["row"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise InputError(f"{path}, line {number}: is not a bad sample ({error}). Remove the line.") from error
