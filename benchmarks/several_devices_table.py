"""The results of `several_devices.py` as Markdown."""

import datetime
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def mesh_name(mesh: Mapping[str, int] | None) -> str:
    return ", ".join(f"{axis}={size}" for axis, size in mesh.items()) if mesh else "one device"


def table(rows: Sequence[Row]) -> str:
    """All that is known so far; a table for each kind of result that there is."""
    kinds = {kind: [row for row in rows if row.get("kind") == kind and "failed" not in row] for kind in KINDS}
    machines = sorted({f"{row['device']}, {row['version']}" for row in rows if "version" in row})
    parts = [f"{'; '.join(machines) or 'nothing measured'}; {datetime.date.today().isoformat()}"]
    parts += [make(kinds[kind]) for kind, make in KINDS.items() if kinds[kind]]
    if failed := {row["step"]: row["failed"] for row in rows if "failed" in row}:
        parts.append("\n".join(f"- failed: {step}: {reason}" for step, reason in failed.items()))
    return "\n\n".join(parts)


def _painting(rows: Sequence[Row]) -> str:
    """Beside one device: a single picture, or as many pictures on each device."""
    baseline = {row["batch"]: row["ms"] for row in rows if not row["mesh"]}
    each = max(baseline, default=0)
    lines = []
    for row in rows:
        base = baseline.get(1 if row["batch"] == 1 else each)
        of = 1 if row["batch"] == 1 else each
        faster = f"{base / of / (row['ms'] / row['batch']):.2f}" if base and row["mesh"] else ""
        lines.append(
            (mesh_name(row["mesh"]), row["batch"], f"{row['ms'] / 1000:.3f}", f"{1000 * row['batch'] / row['ms']:.2f}", faster, _gib(row),
             f"{row['compile_s']:.0f}")
        )  # fmt: skip
    head = ("painting", "pictures at once", "seconds", "pictures/s", "times one device", "GiB a device", "first call, s")
    return _markdown(head, lines)


def _training(rows: Sequence[Row]) -> str:
    """Beside one device: the losses of as many rows in all, and the speed of as many rows on each device."""
    baseline = {(row["part"], row["batch"]): row for row in rows if not row["mesh"]}
    lines = []
    for row in rows:
        devices, same = math.prod(row["mesh"].values()), baseline.get((row["part"], row["batch"]))
        small = baseline.get((row["part"], row["batch"] // devices))
        efficiency = f"{small['ms'] / row['ms']:.0%}" if small and row["mesh"] and "tensor" not in row["mesh"] else ""
        off = f"{_largest(row['losses'], same['losses']):.1e}" if same and row["mesh"] else ""
        lines.append(
            (row["part"], mesh_name(row["mesh"]), row["processes"], row["batch"], f"{row['ms'] / 1000:.3f}",
             f"{1000 * row['batch'] / row['ms']:.2f}", efficiency, off, _gib(row))
        )  # fmt: skip
    head = ("training", "mesh", "processes", "rows", "seconds", "samples/s", "efficiency", "losses differ by", "GiB a device")
    return _markdown(head, lines)


def _equality(rows: Sequence[Row]) -> str:
    lines = [(mesh_name(row["mesh"]), row["dtype"], row["largest"], f"{row['mean']:.4f}") for row in rows]
    return _markdown(("pictures of the nano model", "dtype", "largest difference of 255", "mean"), lines)


def _resumed(rows: Sequence[Row]) -> str:
    return "\n".join(
        f"- A run on {' -> '.join(map(str, row['way']))} devices, saved and continued each time: {row['steps']} losses, at most "
        f"{row['difference']:.1e} from those of one device without a stop."
        for row in rows
    )


def _killed(rows: Sequence[Row]) -> str:
    return "\n".join(
        f"- SIGKILL of one of {row['processes']} processes: one process went on after step {row['saved']}; {row['steps']} losses, at most "
        f"{row['difference']:.1e} from those of one device without a stop."
        for row in rows
    )


KINDS = {"paint": _painting, "train": _training, "equal": _equality, "resume": _resumed, "kill": _killed}


def _largest(ours: Iterable[float], theirs: Iterable[float]) -> float:
    """The largest relative difference."""
    return max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))


def _gib(row: Row) -> str:
    return f"{row['peak_gib']:.1f}" if row["peak_gib"] else ""


def _markdown(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in (head, ["---"] * len(head), *lines))
