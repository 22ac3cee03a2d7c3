"""MJHQ-30K: 30,000 prompts in 10 categories, and the pictures whose features results are compared with. Source: arXiv 2402.17245;
data: playgroundai/MJHQ-30K.

meta_data.json: {"HASH": {"category": "people", "prompt": ...}}, with the pictures as CATEGORY/HASH.jpg; or the jsonl of Draw-In-Mind's
authors.
"""

from pathlib import Path

from dim_jax.evals.benchmark import Benchmark, Case, published_rows
from dim_jax.evals.reading import PictureFinder, find_file, read_prompts, read_table, require_text

FILES = ("meta_data.json", "tos_dataset.jsonl")


def read(data: Path) -> list[Case]:
    """The prompts; the target of each is the picture that was collected with it."""
    path = find_file(data, FILES, "MJHQ-30K")
    pictures, cases = PictureFinder(path.parent, path.parent / "mjhq30k_imgs"), []
    if path.suffix == ".json":
        for where, key, row in read_table(path):
            category = require_text(row, "category", where)
            target = pictures.find(f"{category}/{key}.jpg", where)
            cases.append(Case(key, category, require_text(row, "prompt", where), None, target))
    else:
        for where, row in read_prompts(path):
            target = pictures.find(require_text(row, "image_path", where), where)
            cases.append(Case(row["id"], target.parent.name, row["prompt"], None, target))
    pictures.check()
    return cases


BENCHMARK = Benchmark(
    name="mjhq",
    title="MJHQ-30K",
    kind="generate",
    read=read,
    official=lambda case, k: f"{case.file}.png",
    metrics=("fid",),
    size=30_000,
    published=published_rows(
        ("fid",),
        {
        "PixArt-α": (6.14,), "SDXL": (8.76,), "SD3-Medium": (11.92,), "Janus-Pro-7B": (13.48,),
        "MetaQuery-L, prompts rewritten": (6.35,), "DIM-4.6B-T2I, prompts rewritten": (5.50,),
        },
        source="arXiv 2509.01986", judge="pytorch-fid (bilinear resizing)",
    ),
)  # fmt: skip
