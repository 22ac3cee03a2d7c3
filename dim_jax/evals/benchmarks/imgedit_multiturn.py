"""ImgEdit-Bench, multi-turn: edits in two or three rounds of three kinds, which the makers have people judge. Source: arXiv 2505.20275;
data: Benchmark/multiturn of sysuyy/ImgEdit.

KIND/annotation.json: {"1": {"id": "000066341.jpg", "turn1": ..., "turn2": ..., "turn3": ...}}, with the pictures beside it.
"""

from itertools import count, takewhile
from pathlib import Path

from dim_jax.errors import InputError, check
from dim_jax.evals.benchmark import Benchmark, Case
from dim_jax.evals.reading import PictureFinder, read_table, require_text

KINDS = ("content_memory", "content_understand", "version_backtrace")
TABLE = "annotation.json"


def read(data: Path) -> list[Case]:
    """The cases of `data`, or of multiturn or Benchmark/multiturn in it. An id is KIND-KEY."""
    folders = (data, data / "multiturn", data / "Benchmark/multiturn")
    folder = next((candidate for candidate in folders if any((candidate / kind / TABLE).is_file() for kind in KINDS)), None)
    if folder is None:
        raise InputError(f"{data}: has no {KINDS[0]}/{TABLE} and the like. Give ImgEdit's folder multiturn as it was downloaded.")
    cases = []
    for kind in KINDS:
        if not (folder / kind / TABLE).is_file():
            continue
        pictures = PictureFinder(folder / kind)
        for where, key, row in read_table(folder / kind / TABLE):
            names = takewhile(row.__contains__, (f"turn{k}" for k in count(1)))
            turns = tuple(require_text(row, name, where) for name in names)
            check(turns, f'{where}: needs the instructions "turn1", "turn2" ... Download it again.')
            source = pictures.find(require_text(row, "id", where), where)
            cases.append(Case(f"{kind}-{key}", kind, turns[0], source, turns=turns))
        pictures.check()
    return cases


BENCHMARK = Benchmark(
    name="imgedit-multiturn",
    title="ImgEdit-Bench (multi-turn)",
    kind="edit",
    read=read,
    official=lambda case, k: f"{case.category}/{case.id.removeprefix(case.category + '-')}_turn{k + 1}.png",
)
