"""MJHQ-30K: 30,000 prompts in 10 categories, and the pictures whose features results are compared with. Source: arXiv 2402.17245;
data: playgroundai/MJHQ-30K.

meta_data.json: {"HASH": {"category": "people", "prompt": ...}}, with the pictures as CATEGORY/HASH.jpg; or the jsonl of Draw-In-Mind's
authors.
"""

from pathlib import Path

from dim_jax.evals.benchmark import Benchmark, Case, PublishedRow
from dim_jax.evals.reading import Pictures, find_file, read_prompts, read_table, text_of

FILES = ("meta_data.json", "tos_dataset.jsonl")


def read(data: Path) -> list[Case]:
    """The prompts; the target of each is the picture that was collected with it."""
    path = find_file(data, FILES, "MJHQ-30K")
    pictures, cases = Pictures(path.parent, path.parent / "mjhq30k_imgs"), []
    if path.suffix == ".json":
        for where, key, row in read_table(path):
            category = text_of(row, "category", where)
            target = pictures.find(f"{category}/{key}.jpg", where)
            cases.append(Case(key, category, text_of(row, "prompt", where), None, target))
    else:
        for where, row in read_prompts(path):
            target = pictures.find(text_of(row, "image_path", where), where)
            cases.append(Case(row["id"], target.parent.name, row["prompt"], None, target))
    pictures.check()
    return cases


def published(model: str, fid: float) -> PublishedRow:
    """A row of the table of Draw-In-Mind's authors."""
    return PublishedRow(model, {"fid": fid}, "arXiv 2509.01986", "pytorch-fid (bilinear resizing)")


BENCHMARK = Benchmark(
    name="mjhq",
    title="MJHQ-30K",
    kind="generate",
    read=read,
    official=lambda case, k: f"{case.file}.png",
    metrics=("fid",),
    size=30_000,
    published=(
        published("PixArt-α", 6.14), published("SDXL", 8.76), published("SD3-Medium", 11.92), published("Janus-Pro-7B", 13.48),
        published("MetaQuery-L, prompts rewritten", 6.35), published("DIM-4.6B-T2I, prompts rewritten", 5.50),
    ),
)  # fmt: skip
