"""GenEval: 553 prompts of 6 tasks, four pictures each; a detector scores them. Source: arXiv 2310.11513, github.com/djghosh13/geneval.

evaluation_metadata.jsonl, an object a line: tag, include, (exclude,) prompt. In the jsonl of Draw-In-Mind's authors it is meta_data of the
row. A case's id is the number of its line, from 0.
"""

from collections.abc import Mapping, Sequence
from json import dumps
from pathlib import Path
from typing import Any

from dim_jax.errors import InputError
from dim_jax.evals.benchmark import Benchmark, Case, published_rows
from dim_jax.evals.reading import find_file, require_text
from dim_jax.storage.jsonl import read_objects

FILES = ("evaluation_metadata.jsonl", "prompts/evaluation_metadata.jsonl", "tos_dataset.jsonl")
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


def read(data: Path) -> list[Case]:
    """The prompts of a file of one object a line."""
    cases = []
    for number, (where, row) in enumerate(read_objects(find_file(data, FILES, "GenEval's prompts"))):
        metadata: dict[str, Any] = row.get("meta_data", row)
        if not isinstance(metadata, dict) or not isinstance(metadata.get("include"), list):
            raise InputError(f'{where}: needs a list "include" of what must be on the picture. Download it again.')
        prompt = require_text(row, "prompt", where)
        cases.append(Case(str(number), require_text(metadata, "tag", where), prompt, None, metadata={"metadata": metadata}))
    return cases


def scores(results: Path, cases: Sequence[Case]) -> Mapping[str, dict[str, float]]:
    """By case the share of its pictures that are right, from what evaluate_images.py writes.

    Raises:
        InputError: a line is not one of its results, or names a picture that was not painted for one of the cases.
    """
    right: dict[str, list[bool]] = {}
    ids = {int(case.id): case.id for case in cases}
    for where, row in read_objects(results):
        parts = Path(require_text(row, "filename", where)).parts
        number = int(parts[-3]) if len(parts) > 2 and parts[-3].isdecimal() else -1
        if number not in ids or not isinstance(row.get("correct"), bool):
            raise InputError(f"{where}: is not a result of one of these pictures. Run the scorer on the folder `official` of this track.")
        right.setdefault(ids[number], []).append(row["correct"])
    return {name: {"correct": sum(correct) / len(correct)} for name, correct in right.items()}


def _folder(case: Case) -> str:
    return f"{int(case.id):05d}"


BENCHMARK = Benchmark(
    name="geneval",
    title="GenEval",
    kind="generate",
    read=read,
    official=lambda case, k: f"{_folder(case)}/samples/{k:04d}.png",
    official_files=lambda case: {f"{_folder(case)}/metadata.jsonl": dumps(case.metadata["metadata"]) + "\n"},
    official_scores=scores,
    mean_over="categories",
    pictures_per_case=4,
    size=553,
    published=published_rows(
        (*TASKS, "overall"),
        {
            "SDXL": (0.98, 0.74, 0.39, 0.85, 0.15, 0.23, 0.55),
            "SD3-Medium": (0.99, 0.94, 0.72, 0.89, 0.33, 0.60, 0.74),
            "Janus-Pro-7B": (0.99, 0.89, 0.59, 0.90, 0.79, 0.66, 0.80),
            "BAGEL": (0.99, 0.94, 0.81, 0.88, 0.64, 0.63, 0.82),
            "DIM-4.6B-T2I, prompts rewritten": (0.99, 0.89, 0.63, 0.86, 0.62, 0.61, 0.77),
        },
        source="arXiv 2509.01986",
        judge="Mask2Former (GenEval's detector)",
    ),
)
