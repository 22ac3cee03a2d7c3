"""`dim verify`: the tensors as they are read, each stage by us and by the reference, a table and a verdict.

One pass over the checkpoint: the encoder, most of the memory, is compared and let go before SANA is held.
"""

import json
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from dim_jax import __version__
from dim_jax.console import open_console
from dim_jax.errors import InputError
from dim_jax.settings import read_settings
from dim_jax.storage.folders import check_file, new_file
from dim_jax.storage.paths import AnyPath, as_path, read_json
from dim_jax.verify.case import make_case, make_settings
from dim_jax.verify.fingerprints import Fingerprint, Recording, Tally
from dim_jax.verify.ours import Ours
from dim_jax.verify.stages import STAGES, Stages, Tensors, blamed
from dim_jax.weights.arrays import is_finite
from dim_jax.weights.files import NAMES
from dim_jax.weights.loading import open_dim
from dim_jax.weights.published import Weights

TORCH = "torch"
# A tensor beside the recorded one: the digits of the file; or the most that a rounding to bfloat16 moves a value.
SAME_TENSOR = {"float32": 1e-6, "bfloat16": 2.0**-8}
NAMED = 5  # tensors


def verify(
    path: AnyPath | str,
    *,
    against: str = TORCH,
    record: AnyPath | None = None,
    dtype: str = "float32",
    resolution: int | None = None,
    tokenizer: str | None = None,
    overwrite: bool = False,
    console: Console,
) -> bool:
    """Whether a checkpoint's tensors and every stage of an edit agree with the reference; table and verdict are printed.

    Args:
        path: a whole Draw-In-Mind in any format.
        against: "torch", or a file that was recorded, whose settings are taken.
        record: a file for what PyTorch computes.
        dtype: "float32" or "bfloat16", of our parameters and computation; the reference is float32.
        resolution: of the edit; by default 256, or less where the checkpoint says so.
        tokenizer: a folder or hub id, instead of the checkpoint's own.
        overwrite: replace `record`.
        console: for the table and the verdict.

    Raises:
        InputError: the checkpoint cannot be read or has bad tensors (all are named); packages are missing; a file is damaged, exists, or
            was recorded of another checkpoint.
    """
    recorded = None if against == TORCH else Recording.from_json(read_json(as_path(against)), against)
    torch = _torch() if recorded is None else None
    if record is not None:
        check_file(record, overwrite=overwrite)
    weights, config, processor = open_dim(path, tokenizer)
    settings = recorded.settings if recorded else make_settings(read_settings(weights.settings), processor, resolution)
    case = make_case(config, processor, settings)
    ours, reference = Ours(case, dtype), torch(case, processor.tokenizer.name) if torch else None
    tally, mine, theirs = _computed(weights, ours, reference, recorded, against)
    by = f"dim_jax {__version__}, {reference.name}" if reference else recorded.made_by if recorded else ""
    if record is not None:
        stages = {name: Fingerprint.of(x) for name, x in theirs.items()}
        with new_file(record) as scratch:
            scratch.write_text(json.dumps(Recording(settings, tally.digest, tally.tensors, stages, by).to_json()) + "\n")
    expected = recorded.stages if recorded else {name: Fingerprint.of(x, None) for name, x in theirs.items()}
    results = [_result(name, expected, mine[name], dtype) for name in STAGES]
    changed = tally.differing(recorded.tensors, SAME_TENSOR[dtype]) if recorded else {}

    say = console.out

    dtypes = ", ".join(sorted({NAMES[weights.tensors[path].dtype] for path in weights.parameters}))
    say(f"{path} ({weights.title}): {sum(weights.counts.values())} tensors, {dtypes}, of the right shapes, all finite")
    say(f"here: dim_jax {__version__}, {dtype}, on {jax.devices()[0].device_kind}; beside it: {by}{f' ({against})' if recorded else ''}")
    if recorded and recorded.digest == tally.digest:
        say("tensors: to the bit those that were recorded")
    elif recorded:
        say(f"tensors: {len(changed)} of {len(tally.tensors)} are not those that were recorded" + _named(changed))
    table = _table(results, plain=not console.is_terminal)
    console.print(table)
    if record is not None:
        say(f"wrote {record}")
    faults = [
        f"{part} ({name} is the first stage that is off)" for part, name in blamed([one.name for one in results if not one.ok]).items()
    ]
    faults = [f"the weights of {part}" for part in tally.parts_of(changed)] + faults
    if faults:
        say(f"FAILED. Look at: {'; '.join(faults)}.", style="red")
    else:
        say(f"OK: {path} computes what the reference does.", style="green")
    return not faults


def _computed(weights: Weights, ours: Ours, reference, recorded: Recording | None, against: str) -> tuple[Tally, Stages, Stages]:
    """The tensors' fingerprints, and what came out of each stage here and by the reference, where there is one.

    Raises:
        InputError: tensors are not finite, or most are not those that were recorded.
    """
    tally, held, finite = Tally(), Tensors(), True
    mine, theirs = Stages(), Stages()
    left = sum(path.startswith("encoder.") for path in weights.parameters)

    def check() -> None:
        changed = tally.differing(recorded.tensors, SAME_TENSOR[ours.dtype]) if recorded else {}
        if len(changed) > len(tally.tensors) / 2:
            raise InputError(
                f"{against}: was recorded of another checkpoint than {weights.where}; {len(changed)} of the {len(tally.tensors)} tensors "
                f"read so far are others{_named(changed)}. Record this checkpoint where PyTorch is, or verify that one (--dtype bfloat16 "
                "if it was only rounded)."
            )

    with open_console().status("reading the weights") as status:
        for path, tensor in weights.stream():
            finite = finite and is_finite(tensor)
            tally.add(path, tensor)
            held[path] = np.require(tensor, np.float32 if reference else np.dtype(ours.dtype), "W")
            del tensor  # or it would live on while the next one is put together
            left -= path.startswith("encoder.")
            if not left and finite and not mine:
                check()
                if reference:
                    status.update("the encoder by PyTorch")
                    theirs |= reference.encoder(held)
                status.update("the encoder by dim_jax")
                mine |= ours.encoder(held)
                status.update("reading the weights")
        check()
        if reference:
            status.update("the edit by PyTorch")
            theirs |= reference.painter(held, theirs["encoder states"])
        status.update("the edit by dim_jax")
        mine |= ours.painter(held, mine["encoder states"])
    return tally, mine, theirs


class _Result(NamedTuple):
    name: str
    error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        return self.error <= self.tolerance


def _result(name: str, expected: Mapping[str, Fingerprint], ours: np.ndarray, dtype: str) -> _Result:
    error = expected[name].error(ours) if name in expected else float("inf")
    return _Result(name, error, STAGES[name].bfloat16 if dtype == "bfloat16" else STAGES[name].float32)


def _table(results: list[_Result], *, plain: bool) -> Table:
    table = Table(box=None if plain else box.HEAVY_HEAD)
    for column in ("stage", "shows", "error", "tolerance", ""):
        table.add_column(column, justify="right" if column in ("error", "tolerance") else "left", no_wrap=True)
    for one in results:
        style = "" if one.ok else "red"
        table.add_row(one.name, STAGES[one.name].part, f"{one.error:.1e}", f"{one.tolerance:.0e}", "ok" if one.ok else "FAIL", style=style)
    return table


def _named(changed: Mapping[str, float]) -> str:
    """Some tensors with how far they are off, the farthest first."""
    worst = sorted(changed.items(), key=lambda one: -one[1])
    text = ", ".join(f"{name} (off by {error:.1e})" for name, error in worst[:NAMED])
    return f": {text}{' ...' if len(worst) > NAMED else ''}" if worst else ""


def _torch():
    """The reference's class.

    Raises:
        InputError: a package is missing, or too old.
    """
    try:
        from dim_jax.verify.torch_reference import Torch
    except ImportError as error:
        raise InputError(
            f"PyTorch's side needs torch, transformers and diffusers ({error}). Install them: pip install 'dim_jax[verify]'; or compare "
            "with a file that was recorded where they are (--against FILE)."
        ) from error
    return Torch
