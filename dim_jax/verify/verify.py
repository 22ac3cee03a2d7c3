"""`dim verify`: checks the tensors, computes each stage by us and by the reference, prints a table and a verdict.

The checkpoint is read once. The encoder, most of the memory, is compared and freed before SANA is read.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from dim_jax import __version__
from dim_jax.console import open_console
from dim_jax.errors import check, input_errors
from dim_jax.settings import read_settings
from dim_jax.storage.folders import check_file, write_json
from dim_jax.storage.paths import AnyPath, as_path, read_json
from dim_jax.verify.case import make_case, make_settings
from dim_jax.verify.fingerprints import Fingerprint, Recording, TensorFingerprints
from dim_jax.verify.jax_stages import JaxStages
from dim_jax.verify.stages import STAGES, Stages, Tensors, faulty_parts
from dim_jax.weights.arrays import is_finite
from dim_jax.weights.files import NAMES
from dim_jax.weights.loading import open_dim, require_qwen
from dim_jax.weights.published import Weights

TORCH = "torch"
# Tolerance of a tensor against the recorded one: the digits of the file, or the largest rounding to bfloat16.
SAME_TENSOR = {"float32": 1e-6, "bfloat16": 2.0**-8}
LISTED = 5  # tensors


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
        against: "torch", or a recorded file, whose settings are used.
        record: a file to record what PyTorch computes.
        dtype: "float32" or "bfloat16", of our parameters and computation; the reference is float32.
        resolution: of the edit; by default 256, or less if the checkpoint's is less.
        tokenizer: a folder or hub id, instead of the checkpoint's own.
        overwrite: replace `record`.
        console: for the table and the verdict.

    Raises:
        InputError: the checkpoint cannot be read or has bad tensors (all are named); packages are missing; a file is damaged, exists, or
            was recorded with another checkpoint.
    """
    recorded = None if against == TORCH else Recording.from_json(read_json(as_path(against)), against)
    torch = _torch() if recorded is None else None
    if record is not None:
        check_file(record, overwrite=overwrite)
    weights, config, processor = open_dim(path, tokenizer)
    require_qwen(config.encoder, "dim verify")
    check(
        not config.sana.guidance_embeds,
        f"{path}: its SANA takes the guidance scale as an input, and `dim verify` compares networks of two branches. Verify its teacher.",
    )
    own = read_settings(weights.settings, config.autoencoder.factor)
    settings = recorded.settings if recorded else make_settings(own, processor, resolution)
    case = make_case(config, processor, settings)
    ours, reference = JaxStages(case, dtype), torch(case, processor.tokenizer.name) if torch else None
    tally, outputs, expected_outputs = _compute_stages(weights, ours, reference, recorded, against)
    made_by = f"dim_jax {__version__}, {reference.name}" if reference else recorded.made_by if recorded else ""
    if record is not None:
        stages = {name: Fingerprint.of(x) for name, x in expected_outputs.items()}
        write_json(record, Recording(settings, tally.digest, tally.tensors, stages, made_by).to_json(), indent=None)
    expected = recorded.stages if recorded else {name: Fingerprint.of(x, None) for name, x in expected_outputs.items()}
    errors = {name: expected[name].error(outputs[name]) if name in expected else float("inf") for name in STAGES}
    results = [_Result(name, error, getattr(STAGES[name], dtype)) for name, error in errors.items()]
    differing = tally.differences(recorded.tensors, SAME_TENSOR[dtype]) if recorded else {}

    print_line = console.out

    dtypes = ", ".join(sorted({NAMES[weights.tensors[path].dtype] for path in weights.parameters}))
    print_line(f"{path} ({weights.title}): {sum(weights.counts.values())} tensors, {dtypes}, of the right shapes, all finite")
    recording = f" ({against})" if recorded else ""
    print_line(f"ours: dim_jax {__version__}, {dtype}, on {jax.devices()[0].device_kind}; reference: {made_by}{recording}")
    if recorded and recorded.digest == tally.digest:
        print_line("tensors: bit-identical to the recorded ones")
    elif recorded:
        print_line(f"tensors: {len(differing)} of {len(tally.tensors)} differ from the recorded ones" + _worst(differing))
    table = _table(results, plain=not console.is_terminal)
    console.print(table)
    if record is not None:
        print_line(f"wrote {record}")
    faults = [
        f"{part} ({name} is the first stage that differs)"
        for part, name in faulty_parts([result.name for result in results if not result.ok]).items()
    ]
    faults = [f"the weights of {part}" for part in tally.parts_of(differing)] + faults
    if faults:
        print_line(f"FAILED. Look at: {'; '.join(faults)}.", style="red")
    else:
        print_line(f"OK: {path} computes what the reference does.", style="green")
    return not faults


def _compute_stages(
    weights: Weights, ours: JaxStages, reference, recorded: Recording | None, against: str
) -> tuple[TensorFingerprints, Stages, Stages]:
    """The tensors' fingerprints, and the outputs of each stage by us and by the reference, if there is one."""
    tally, tensors, finite = TensorFingerprints(), Tensors(), True
    outputs, expected_outputs = Stages(), Stages()
    remaining = sum(path.startswith("encoder.") for path in weights.parameters)

    def compare_tensors() -> None:
        differing = tally.differences(recorded.tensors, SAME_TENSOR[ours.dtype]) if recorded else {}
        check(
            len(differing) <= len(tally.tensors) / 2,
            f"{against}: was recorded with another checkpoint than {weights.where}; {len(differing)} of the {len(tally.tensors)} "
            f"tensors read so far differ{_worst(differing)}. Record this checkpoint on a machine with PyTorch, or verify the recorded "
            "one (--dtype bfloat16 if it was only rounded).",
        )

    with open_console().status("reading the weights") as status:
        for path, tensor in weights.stream():
            finite = finite and is_finite(tensor)
            tally.add(path, tensor)
            tensors[path] = np.require(tensor, np.float32 if reference else np.dtype(ours.dtype), "W")
            del tensor  # or it would live on while the next one is put together
            remaining -= path.startswith("encoder.")
            if not remaining and finite and not outputs:
                compare_tensors()
                if reference:
                    status.update("the encoder by PyTorch")
                    expected_outputs |= reference.encoder(tensors)
                status.update("the encoder by dim_jax")
                outputs |= ours.encoder(tensors)
                status.update("reading the weights")
        compare_tensors()
        if reference:
            status.update("the edit by PyTorch")
            expected_outputs |= reference.painter(tensors, expected_outputs["encoder states"])
        status.update("the edit by dim_jax")
        outputs |= ours.painter(tensors, outputs["encoder states"])
    return tally, outputs, expected_outputs


class _Result(NamedTuple):
    name: str
    error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        return self.error <= self.tolerance


def _table(results: list[_Result], *, plain: bool) -> Table:
    table = Table(box=None if plain else box.HEAVY_HEAD)
    for column in ("stage", "shows", "error", "tolerance", ""):
        table.add_column(column, justify="right" if column in ("error", "tolerance") else "left", no_wrap=True)
    for result in results:
        style = "" if result.ok else "red"
        table.add_row(
            result.name,
            STAGES[result.name].part,
            f"{result.error:.1e}",
            f"{result.tolerance:.0e}",
            "ok" if result.ok else "FAIL",
            style=style,
        )
    return table


def _worst(errors: Mapping[str, float]) -> str:
    """The tensors with the largest errors, the largest first."""
    worst = sorted(errors.items(), key=lambda item: -item[1])
    text = ", ".join(f"{name} (off by {error:.1e})" for name, error in worst[:LISTED])
    return f": {text}{' ...' if len(worst) > LISTED else ''}" if worst else ""


def _torch():
    """The reference's class."""
    remedy = "Install them: pip install 'dim_jax[verify]'; or compare with a file that was recorded where they are (--against FILE)."
    with input_errors(
        lambda error: f"PyTorch's side needs torch, transformers and diffusers ({error}). {remedy}",
        ImportError,
    ):
        from dim_jax.verify.torch_stages import TorchStages
    return TorchStages
