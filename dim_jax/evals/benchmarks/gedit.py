"""GEdit-Bench, the English half: 606 edits of 11 types. Source: arXiv 2504.17761; data: stepfun-ai/GEdit-Bench.

As the makers ship it, parquet with task_type, key, instruction, instruction_language, input_image_raw, Intersection_exist; or the jsonl of
Draw-In-Mind's authors, whose ids number the pictures in input_image_raw.
"""

from pathlib import Path

from dim_jax.errors import InputError
from dim_jax.evals.benchmark import Benchmark, Case, PublishedRow
from dim_jax.evals.reading import PictureFinder, find_file, read_parquet, read_prompts, require_text, store_picture

ROWS = "tos_dataset_edit_en.jsonl"
TEXT = "text_change"


def read(data: Path) -> list[Case]:
    """The English cases of parquet files (in the folder, or in its `data`), or of the jsonl."""
    if data.is_dir() and not (data / ROWS).is_file():
        return _of_parquet(data)
    path = find_file(data, (ROWS,), "GEdit-Bench")
    pictures, cases = PictureFinder(path.parent), []
    for where, row in read_prompts(path):
        if row.get("instruction_language", "en") == "en":
            source = pictures.find(require_text(row, "image_path", where), where)
            cases.append(_case(row["id"], row, row["prompt"], source, where))
    pictures.check()
    return cases


def _of_parquet(data: Path) -> list[Case]:
    cases = []
    columns = ("task_type", "key", "instruction", "instruction_language", "input_image_raw", "Intersection_exist")
    for where, row in read_parquet(data, columns, "GEdit-Bench"):
        if row["instruction_language"] == "en":
            source = store_picture(row["input_image_raw"], where)
            cases.append(_case(require_text(row, "key", where), row, require_text(row, "instruction", where), source, where))
    return cases


def _case(name: str, row: dict, prompt: str, source: Path, where: str) -> Case:
    if not isinstance(row.get("Intersection_exist"), bool):
        raise InputError(f'{where}: needs "Intersection_exist", true or false: whether the case is of the intersection.')
    metadata = {"key": require_text(row, "key", where), "Intersection_exist": row["Intersection_exist"], "instruction_language": "en"}
    return Case(name, require_text(row, "task_type", where), prompt, source, metadata=metadata)


def _official(case: Case, end: str) -> str:
    return f"fullset/{case.category}/en/{case.metadata['key']}{end}.png"


BENCHMARK = Benchmark(
    name="gedit",
    title="GEdit-Bench-EN",
    kind="edit",
    read=read,
    official=lambda case, k: _official(case, ""),
    official_files=lambda case: {_official(case, "_SRCIMG"): case.source} if case.source else {},
    protocol="gedit",
    size=606,
    subsets={
        "full set": lambda case: True,
        "full set without text change": lambda case: case.category != TEXT,
        "intersection": lambda case: case.metadata["Intersection_exist"],
        "intersection without text change": lambda case: case.metadata["Intersection_exist"] and case.category != TEXT,
    },
    published=(PublishedRow("DIM-4.6B-Edit, GPT-4o designs", {"full set without text change": 6.50}, "arXiv 2509.01986", "GPT-4.1"),),
)
