"""RISEBench: 360 edits that need reasoning about time, causes, space or logic. Source: arXiv 2504.02826; data: PhoenixZ/RISEBench.

datav2_total_w_subtask.json, a list of objects: index, category, instruction, image, and what the judge is told: reference (or
reference_txt), reference_img, reasoning_img, consistency_free, subtask. Pictures are named from the folder `data`.
"""

from pathlib import Path
from typing import Any

from dim_jax.errors import InputError
from dim_jax.evals.benchmark import Benchmark, Case, PublishedRow
from dim_jax.evals.reading import Pictures, find_file, text_of
from dim_jax.storage.paths import read_json

FILES = ("datav2_total_w_subtask.json", "data_total.json", "data/datav2_total_w_subtask.json", "data/data_total.json")
CATEGORIES = ("temporal_reasoning", "causal_reasoning", "spatial_reasoning", "logical_reasoning")
PICTURES = ("reference_img", "reasoning_img")


def read(data: Path) -> list[Case]:
    """The cases; facts are the rest of the row, with the pictures for the judge as paths. The target is the reference picture, if any."""
    path = find_file(data, FILES, "RISEBench")
    rows = read_json(path)
    if not isinstance(rows, list):
        raise InputError(f"{path}: must be a list of cases. Download it again.")
    pictures, cases = Pictures(path.parent, path.parent / "data"), []
    for number, row in enumerate(rows, 1):
        where = f"{path}, case {number}"
        if not isinstance(row, dict):
            raise InputError(f"{where}: is not an object. Download it again.")
        category = text_of(row, "category", where)
        if category not in CATEGORIES:
            raise InputError(f'{where}: "{category}" is not one of {", ".join(CATEGORIES)}.')
        facts: dict[str, Any] = {key: value for key, value in row.items() if value is not None}
        for key in PICTURES:
            if isinstance(facts.get(key), str):
                facts[key] = str(pictures.find(facts[key], where))
        source = pictures.find(text_of(row, "image", where), where)
        target = Path(facts["reference_img"]) if isinstance(facts.get("reference_img"), str) else None
        cases.append(Case(str(row.get("index", number)), category, text_of(row, "instruction", where), source, target, facts=facts))
    pictures.check()
    return cases


def published(model: str, *values: float) -> PublishedRow:
    """A row of the makers' table: the share of cases, in percent, that are right in everything."""
    return PublishedRow(model, dict(zip((*CATEGORIES, "overall"), values, strict=True)), "github.com/PhoenixZ810/RISEBench", "GPT-4.1")


BENCHMARK = Benchmark(
    name="risebench",
    title="RISEBench",
    kind="edit",
    read=read,
    official=lambda case, k: f"images/{case.category}/{case.id}.png",
    protocol="risebench",
    size=360,
    published=(
        published("GPT-4o-Image", 34.1, 32.2, 37.0, 10.6, 28.9),
        published("Gemini-2.0-Flash-exp", 8.2, 15.5, 23.0, 4.7, 13.3),
        published("BAGEL, with its reasoning", 5.9, 17.8, 21.0, 1.2, 11.9),
        published("BAGEL", 2.4, 5.6, 14.0, 1.2, 6.1),
        published("Step1X-Edit", 0.0, 2.2, 2.0, 3.5, 1.9),
    ),
)
