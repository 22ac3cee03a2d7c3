"""RISEBench: 360 edits that need reasoning about time, causes, space or logic. Source: arXiv 2504.02826; data: PhoenixZ/RISEBench.

datav2_total_w_subtask.json, a list of objects: index, category, instruction, image, and what the judge reads: reference (or
reference_txt), reference_img, reasoning_img, consistency_free, subtask. Pictures are named from the folder `data`.
"""

from pathlib import Path
from typing import Any

from dim_jax.errors import check
from dim_jax.evals.benchmark import Benchmark, Case, published_rows
from dim_jax.evals.reading import PictureFinder, find_file, require_text
from dim_jax.storage.paths import read_json

FILES = ("datav2_total_w_subtask.json", "data_total.json", "data/datav2_total_w_subtask.json", "data/data_total.json")
CATEGORIES = ("temporal_reasoning", "causal_reasoning", "spatial_reasoning", "logical_reasoning")
PICTURES = ("reference_img", "reasoning_img")


def read(data: Path) -> list[Case]:
    """The cases; metadata is the rest of the row, with the pictures for the judge as paths. The target is the reference picture, if any."""
    path = find_file(data, FILES, "RISEBench")
    rows = read_json(path)
    check(isinstance(rows, list), f"{path}: must be a list of cases. Download it again.")
    pictures, cases = PictureFinder(path.parent, path.parent / "data"), []
    for number, row in enumerate(rows, 1):
        where = f"{path}, case {number}"
        check(isinstance(row, dict), f"{where}: is not an object. Download it again.")
        category = require_text(row, "category", where)
        check(category in CATEGORIES, f'{where}: "{category}" is not one of {", ".join(CATEGORIES)}.')
        metadata: dict[str, Any] = {key: value for key, value in row.items() if value is not None}
        for key in PICTURES:
            if isinstance(metadata.get(key), str):
                metadata[key] = str(pictures.find(metadata[key], where))
        source = pictures.find(require_text(row, "image", where), where)
        target = Path(metadata["reference_img"]) if isinstance(metadata.get("reference_img"), str) else None
        cases.append(
            Case(str(row.get("index", number)), category, require_text(row, "instruction", where), source, target, metadata=metadata)
        )
    pictures.check()
    return cases


BENCHMARK = Benchmark(
    name="risebench",
    title="RISEBench",
    kind="edit",
    read=read,
    official=lambda case, k: f"images/{case.category}/{case.id}.png",
    protocol="risebench",
    size=360,
    published=published_rows(
        (*CATEGORIES, "overall"),
        {
            "GPT-4o-Image": (34.1, 32.2, 37.0, 10.6, 28.9),
            "Gemini-2.0-Flash-exp": (8.2, 15.5, 23.0, 4.7, 13.3),
            "BAGEL, with its reasoning": (5.9, 17.8, 21.0, 1.2, 11.9),
            "BAGEL": (2.4, 5.6, 14.0, 1.2, 6.1),
            "Step1X-Edit": (0.0, 2.2, 2.0, 3.5, 1.9),
        },
        source="github.com/PhoenixZ810/RISEBench",
        judge="GPT-4.1",
    ),
)
