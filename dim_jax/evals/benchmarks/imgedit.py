"""ImgEdit-Bench, single turn: 737 edits of 9 types. Source: arXiv 2505.20275; data: Benchmark/singleturn of sysuyy/ImgEdit.

singleturn.json (basic_edit.json in the makers' repository): {"1082": {"id": "animal/000342021.jpg", "prompt": ..., "edit_type": "adjust"}};
some versions call that type "alter".
The jsonl of Draw-In-Mind's authors has the same keys as ids, and no types: those come from the makers' file, which must lie beside it.
"""

from pathlib import Path

from dim_jax.errors import InputError, check
from dim_jax.evals.benchmark import Benchmark, Case, published_rows
from dim_jax.evals.reading import PictureFinder, find_file, read_prompts, read_table, require_text

TYPES = ("add", "adjust", "extract", "replace", "remove", "background", "style", "compose", "action")
OTHER_NAMES = {"alter": "adjust"}
TABLES = ("singleturn.json", "basic_edit.json", "singleturn/singleturn.json", "Benchmark/singleturn/singleturn.json")
ROWS = "tos_dataset_edit.jsonl"


def read(data: Path) -> list[Case]:
    """The cases of a folder with the makers' table, or of a jsonl below which that table and the pictures lie."""
    path = find_file(data, (*TABLES, ROWS), "ImgEdit's Benchmark folder")
    if path.suffix == ".jsonl":
        return _of_rows(path)
    pictures, cases = PictureFinder(path.parent), []
    for where, key, row in read_table(path):
        source = pictures.find(require_text(row, "id", where), where)
        cases.append(Case(key, _edit_type(row, where), require_text(row, "prompt", where), source))
    pictures.check()
    return cases


def _of_rows(path: Path) -> list[Case]:
    table = find_file(path.parent, TABLES, "ImgEdit's table of edit types beside the jsonl")
    types = {key: _edit_type(row, where) for where, key, row in read_table(table)}
    pictures, cases = PictureFinder(path.parent), []
    for where, row in read_prompts(path):
        if row["id"] not in types:
            raise InputError(f'{where}: id "{row["id"]}" is not in {table}, which has the edit types. Take both from one version.')
        cases.append(Case(row["id"], types[row["id"]], row["prompt"], pictures.find(require_text(row, "image_path", where), where)))
    pictures.check()
    return cases


def _edit_type(row: dict, where: str) -> str:
    kind = require_text(row, "edit_type", where)
    kind = OTHER_NAMES.get(kind, kind)
    check(kind in TYPES, f'{where}: "{kind}" is not a type of edit. Types are {", ".join(TYPES)}.')
    return kind


BENCHMARK = Benchmark(
    name="imgedit",
    title="ImgEdit-Bench (single turn)",
    kind="edit",
    read=read,
    official=lambda case, k: f"{case.id}.png",
    protocol="imgedit",
    size=737,
    published=published_rows(
        (*TYPES, "overall"),
        {
            "Step1X-Edit": (3.88, 3.14, 1.76, 3.40, 2.41, 3.16, 4.63, 2.64, 2.52, 3.06),
            "BAGEL": (3.56, 3.31, 1.70, 3.30, 2.62, 3.24, 4.49, 2.38, 4.17, 3.20),
            "UniWorld-V1": (3.82, 3.64, 2.27, 3.47, 3.24, 2.99, 4.21, 2.96, 2.74, 3.26),
            "GPT-4o-Image": (4.61, 4.33, 2.90, 4.35, 3.66, 4.57, 4.93, 3.96, 4.89, 4.20),
            "DIM-4.6B-Edit, Qwen2.5-VL-3B designs": (3.80, 3.24, 2.03, 3.89, 3.21, 3.52, 4.92, 2.71, 4.05, 3.49),
            "DIM-4.6B-Edit, Qwen2.5-VL-7B designs": (3.95, 3.35, 2.25, 3.85, 3.31, 3.57, 4.88, 2.81, 4.02, 3.55),
            "DIM-4.6B-Edit, GPT-4o designs": (4.09, 3.47, 2.30, 4.00, 3.43, 3.87, 4.92, 2.85, 4.08, 3.67),
        },
        source="arXiv 2509.01986",
        judge="GPT-4.1",
    ),
)
