"""Small folders laid out as the makers of benchmarks ship them."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.painter_fixtures import picture

IMGEDIT = {
    "1082": {"id": "animal/000342021.jpg", "prompt": "Make the shell smooth.", "edit_type": "adjust"},
    "673": {"id": "style/000278574.jpg", "prompt": "Make it a woodcut.", "edit_type": "style"},
    "1149": {"id": "compose/human/14.jpg", "prompt": "Remove the box and add light.", "edit_type": "compose"},
    "97": {"id": "animal/000342021.jpg", "prompt": "Add a chandelier.", "edit_type": "add"},
}


def put(path: Path, seed: int, size: tuple[int, int] = (64, 64)) -> None:
    """A picture that a seed makes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(*size, seed).save(path)


def put_json(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def put_lines(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def imgedit(folder: Path) -> Path:
    """Benchmark/singleturn with four cases of four types on three pictures."""
    single = folder / "Benchmark/singleturn"
    for seed, name in enumerate(dict.fromkeys(row["id"] for row in IMGEDIT.values())):
        put(single / name, seed)
    put_json(single / "singleturn.json", IMGEDIT)
    return folder


def imgedit_multiturn(folder: Path) -> Path:
    """One case of two turns, and one of three."""
    for kind, count in (("content_memory", 2), ("version_backtrace", 3)):
        put(folder / f"multiturn/{kind}/000066341.jpg", count)
        turns = {f"turn{k}": f"Edit {k} of {kind}." for k in range(1, count + 1)}
        put_json(folder / f"multiturn/{kind}/annotation.json", {"1": {"id": "000066341.jpg", **turns}})
    return folder


def gedit_rows() -> list[dict[str, Any]]:
    kinds = ("background_change", "text_change", "text_change", "subject-add")
    return [
        {"id": str(40 + i), "image_path": f"./cache/GEdit-Bench/input_image_raw/{40 + i}.png", "prompt": f"Edit {i}.",
         "task_type": kind, "key": f"hash{i}", "instruction_language": "en", "Intersection_exist": i % 2 == 0}
        for i, kind in enumerate(kinds)
    ]  # fmt: skip


def gedit(folder: Path) -> Path:
    """The jsonl of Draw-In-Mind's authors with its pictures."""
    for i, row in enumerate(gedit_rows()):
        put(folder / "input_image_raw" / Path(row["image_path"]).name, i)
    put_lines(folder / "tos_dataset_edit_en.jsonl", gedit_rows())
    return folder


def png(seed: int) -> dict[str, Any]:
    """A picture as a column of the hub holds it."""
    file = io.BytesIO()
    picture(64, 64, seed).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def gedit_parquet(folder: Path) -> Path:
    """Two files, with the Chinese half in them."""
    for number in range(2):
        rows = [
            {"task_type": row["task_type"], "key": row["key"] + language, "instruction": row["prompt"], "instruction_language": language,
             "input_image_raw": png(i), "Intersection_exist": row["Intersection_exist"]}
            for i, row in enumerate(gedit_rows()) for language in ("en", "cn") if i % 2 == number
        ]  # fmt: skip
        (folder / "data").mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), folder / f"data/train-0000{number}-of-00002.parquet")
    return folder


GENEVAL = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {"tag": "single_object", "include": [{"class": "cow", "count": 1}], "prompt": "a photo of a cow"},
    {"tag": "counting", "include": [{"class": "fork", "count": 3}], "exclude": [{"class": "fork", "count": 4}], "prompt": "three forks"},
]


def geneval(folder: Path) -> Path:
    put_lines(folder / "prompts/evaluation_metadata.jsonl", GENEVAL)
    return folder


def mjhq(folder: Path) -> Path:
    rows = {f"{i}abc": {"category": category, "prompt": f"picture {i}"} for i, category in enumerate(("people", "logo", "people"))}
    for i, (key, row) in enumerate(rows.items()):
        put(folder / row["category"] / f"{key}.jpg", i)
    put_json(folder / "meta_data.json", rows)
    return folder


def magicbrush(folder: Path) -> Path:
    """A session of one turn and one of two."""
    sessions: dict[str, list[dict[str, str]]] = {}
    captions: dict[str, dict[str, str]] = {}
    for session, count in (("30", 1), ("139", 2)):
        put(folder / f"images/{session}/{session}-input.png", count)
        before = f"{session}-input.png"
        for k in range(1, count + 1):
            row = {"input": before, "mask": f"{session}-mask{k}.png", "output": f"{session}-output{k}.png", "instruction": f"Edit {k}."}
            for seed, key in enumerate(("mask", "output")):
                put(folder / "images" / session / row[key], 10 * k + seed)
            sessions.setdefault(session, []).append(row)
            captions.setdefault(session, {})[row["output"]] = f"a caption of {row['output']}"
            before = row["output"]
    put_json(folder / "edit_sessions.json", sessions)
    put_json(folder / "global_descriptions.json", captions)
    return folder


def magicbrush_parquet(folder: Path) -> Path:
    rows = [
        {"img_id": session, "turn_index": k, "source_img": png(k), "mask_img": png(k + 10), "instruction": f"Edit {k}.",
         "target_img": png(k + 1)}
        for session, k in (("139", 2), ("139", 1), ("30", 1))
    ]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "dev-00000-of-00001.parquet")
    return folder


def risebench(folder: Path) -> Path:
    rows: list[dict[str, Any]] = []
    for i, kind in enumerate(("temporal", "causal", "spatial", "logical"), 1):
        name = f"{kind}_reasoning_images/{i}.png"
        put(folder / "data" / name, i)
        rows.append({"index": f"{kind}_reasoning_{i}", "category": f"{kind}_reasoning", "instruction": f"Show {kind}.", "image": name})
    rows[0] |= {"reference": "the fruit is rotten", "subtask": "Life Progression"}
    rows[2] |= {"reference_img": "spatial_reasoning_images/3_ref.png", "consistency_free": None}
    put(folder / "data/spatial_reasoning_images/3_ref.png", 9)
    put_json(folder / "datav2_total_w_subtask.json", rows)
    return folder
