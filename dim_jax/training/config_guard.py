"""The config that a working directory began with: a run goes on with the same one, or says that it shall change.

A start that left no state binds nobody: it may have been refused, and the next one begins at step 0 all the same.
"""

import json

from dim_jax.checkpoint import read_json
from dim_jax.config import Config, flat
from dim_jax.errors import InputError
from dim_jax.folders import append, new_file
from dim_jax.paths import AnyPath

# Keys, and beginnings of keys: the curve does not depend on them, but for rounding.
FREE_TO_CHANGE = (
    "data.bad_samples", "data.workers", "sharding.", "train.keep", "train.log_every", "train.save_every", "train.show_every",
    "train.steps", "train.watchdog_minutes",
)  # fmt: skip


def same_config(config: Config, workdir: AnyPath, *, step: int, allow_changes: bool) -> None:
    """Write `config` to config.json, and what differs from the one before, after `step`, as a line of changes.jsonl.

    Raises:
        InputError: a key differs on which the curve depends, and `allow_changes` is not set.
    """
    path, now = workdir / "config.json", flat(config)
    if not step:
        for name in ("config.json", "changes.jsonl", "bad_samples.jsonl"):
            (workdir / name).unlink(missing_ok=True)
    before = read_json(path) if path.exists() else now
    changed = {key: [before.get(key), now.get(key)] for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)}
    bound = [f"{key} was {was!r}, is {new!r}" for key, (was, new) in changed.items() if not key.startswith(FREE_TO_CHANGE)]
    if bound and not allow_changes:
        raise InputError(
            f"{workdir} began with another config: {'; '.join(bound)}. Change it back, use another --workdir, or go on with the new one "
            "(--allow-changes)."
        )
    if changed:
        append(workdir / "changes.jsonl", json.dumps({"step": step, "changed": changed}) + "\n")
    with new_file(path) as scratch:
        scratch.write_text(json.dumps(now, indent=1) + "\n")
