"""Compare everything that dim_jax computes with a folder of goldens.

    python tests/parity/check_goldens.py DIR [--only NAME ...] [--tokenizer FILE]

DIR is made like tests/goldens (its README says how): sizes, cases, seeds and tolerances all come from its files. One line a tensor
group: ok or FAIL, its name, its shape, and the largest error against what is allowed there. The exit status is 1 if anything exceeds
its tolerance, is not finite or has another shape, and if a file, a key or a tensor is missing or no check read it.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the goldens are float32 on a CPU
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parents[2]))  # run as a script, this file's folder is there instead

import numpy as np

from tests.parity import dc_ae_goldens, dim_goldens, processor_goldens, qwen_goldens, sana_goldens
from tests.parity.goldens import Goldens, Group

Parts = Callable[[Goldens, Path | None], list[Iterator[Group]]]
NAMES: dict[str, Parts] = {
    "chat": lambda goldens, tokenizer: [processor_goldens.chat(goldens, tokenizer)],
    "preprocess": lambda goldens, _: [processor_goldens.preprocess(goldens)],
    "sana_t2i": lambda goldens, _: sana_goldens.parts(goldens, "sana_t2i"),
    "sana_edit": lambda goldens, _: sana_goldens.parts(goldens, "sana_edit"),
    "qwen": lambda goldens, _: [qwen_goldens.groups(goldens)],
    "dc_ae": lambda goldens, _: [dc_ae_goldens.groups(goldens)],
    "dim_edit": lambda goldens, _: [dim_goldens.edit(goldens), dim_goldens.parts(goldens)],
    "adamw": lambda goldens, _: [dim_goldens.adamw(goldens)],
}


class Line(NamedTuple):
    """What one group, or one thing that is not as it should be, came to; `ratio` is the largest error in tolerances."""

    ok: bool
    name: str
    text: str
    ratio: float = np.inf

    def __str__(self) -> str:
        return f"{'ok  ' if self.ok else 'FAIL'} {self.name:<52} {self.text}"


def compare(group: Group) -> Line:
    """The element of a group that uses up most of its tolerance."""
    ours, golden = np.asarray(group.ours), np.asarray(group.golden)
    if ours.shape != golden.shape:
        return Line(False, group.name, f"{ours.shape} expected {golden.shape}")
    ours, golden = ours.astype(np.float64), golden.astype(np.float64)
    infinite = [
        f"{np.sum(~np.isfinite(x))} {whose}" for whose, x in (("of ours", ours), ("of the golden", golden)) if not np.isfinite(x).all()
    ]
    if infinite:
        return Line(False, group.name, f"{golden.shape} not finite: {', '.join(infinite)}")
    error, allowed = np.abs(ours - golden), group.atol + group.rtol * np.abs(golden)
    if not error.size:
        return Line(True, group.name, f"{golden.shape} empty", 0.0)
    ratio = np.where(error > 0, error / np.maximum(allowed, np.finfo(float).tiny), 0)
    worst = np.unravel_index(np.argmax(ratio), ratio.shape)
    text = f"{golden.shape!s:<18} {error[worst]:.2e} / {allowed[worst]:.2e}"
    return Line(bool((error <= allowed).all()), group.name, text, float(ratio[worst]))


def check(goldens: Goldens, name: str, tokenizer: Path | None = None) -> Iterator[Line]:
    """The lines of one name. An error ends only the part that it is raised in."""
    whole = True
    for part in NAMES[name](goldens, tokenizer):
        try:
            for group in part:
                yield compare(group._replace(name=f"{name}.{group.name}"))
        except Exception as error:  # whatever it is, it is a failed line, and the other parts are still checked
            whole = False
            yield Line(False, name, " ".join(f"{type(error).__name__}: {error}".split())[:500])
    if whole:
        for file, tensor in goldens.unread():
            yield Line(False, f"{name}.{tensor}", f"unread tensor of {file}: no check depends on it")


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 0 if everything agrees."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--only", choices=NAMES, metavar="NAME", action="append", help=f"one of {', '.join(NAMES)}; repeatable")
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="folder or tokenizer.json that chat.json's ids are checked with")
    options = parser.parse_args(arguments)
    if not options.folder.is_dir():
        parser.error(f"{options.folder} is not a folder")
    lines: list[Line] = []
    for name in options.only or NAMES:
        for line in check(Goldens(options.folder), name, options.tokenizer):
            print(line, flush=True)
            lines.append(line)
        if name == "chat" and options.tokenizer is None:
            print("--   chat: ids and user turns are not checked without --tokenizer")
    failed = sum(not line.ok for line in lines)
    print(f"{len(lines) - failed} ok, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
