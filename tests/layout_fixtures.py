"""The published data sets in small, as they lie on disk, and what `dim prepare` makes of them."""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from dim_jax.data.example import Example, Kind
from dim_jax.datasets.layouts import layout_of, open_splits
from dim_jax.datasets.layouts.pairs import write_pairs
from dim_jax.datasets.prepare import prepare
from dim_jax.storage.paths import AnyPath, as_path
from tests.painter_fixtures import picture
from tests.test_pairs import PAIRS, PICTURES

TOKENIZER = Path(__file__).parent / "tiny_tokenizer"
ROWS = 12


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def image(number: int) -> Image.Image:
    """A picture of its own size for each number."""
    return picture(16 + number, 40 - number, number)


def files(name: str) -> dict[str, bytes]:
    """Sources have even numbers, targets odd ones."""
    return {name.format(number): png(image(number)) for number in range(2 * ROWS)}


def extract(folder: Path, contents: dict[str, bytes]) -> None:
    for name, data in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def tar(path: Path, contents: dict[str, bytes], mode: str) -> None:
    with tarfile.open(path, mode) as archive:
        directory = tarfile.TarInfo("./image")
        directory.type = tarfile.DIRTYPE
        archive.addfile(directory)
        for name, data in contents.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def cut(path: Path, endings: tuple[str, ...]) -> None:
    """As `split` does."""
    data = path.read_bytes()
    size = -(-len(data) // len(endings))
    for number, ending in enumerate(endings):
        path.with_name(path.name + ending).write_bytes(data[number * size : (number + 1) * size])
    path.unlink()


def dim_edit(folder: Path) -> Path:
    folder.mkdir()
    with (folder / "tos_dataset_edit.jsonl").open("w") as file:
        for row in range(ROWS):
            fields = {"id": f"{row:04}", "image_path": f"image/{2 * row}.png", "image_path_target": f"image/{2 * row + 1}.png"}
            file.write(json.dumps(fields | {"prompt": f"1. **Edit Instruction**: make it {row} “red”."}, ensure_ascii=False) + "\n")
    return folder


def share_gpt(folder: Path) -> Path:
    folder.mkdir()
    edits = [
        {"input_prompt": f"Edit {row}.", "input_image": [f"image/{2 * row}.png"], "output_image": f"image/{2 * row + 1}.png"}
        for row in range(ROWS)
    ]
    (folder / "text_and_image_to_image.json").write_text(json.dumps(edits))
    captions = [{"input_prompt": f"Paint {row}.", "output_image": f"image/{2 * row + 1}.png"} for row in range(ROWS - 1)]
    (folder / "text_to_image.json").write_text(json.dumps(captions))
    return folder


def ultra_edit(folder: Path, *, group: int = 3, **changes) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (folder / "data").mkdir(parents=True)
    for number, rows in enumerate((range(7), range(7, ROWS))):
        stored = [[{"bytes": png(image(2 * row + side)), "path": None} for row in rows] for side in (0, 1)]
        columns = {
            "source_image": stored[0],
            "edited_image": stored[1],
            "edit_prompt": [f"Edit {row}." for row in rows],
            "ssim": [0.5] * len(rows),
        }
        columns |= changes
        table = pyarrow.table({name: values for name, values in columns.items() if values})
        parquet.write_table(table, folder / f"data/FreeForm-{number:05}-of-00002.parquet", row_group_size=group)
    return folder


def edits(folder: Path) -> Path:
    extract(dim_edit(folder), files("image/{}.png"))
    return folder


def captions(folder: Path) -> Path:
    extract(folder, {f"{number}.png": png(image(number)) for number in range(ROWS)})
    rows = [{"image_path": f"{number}.png", "caption": f"Picture {number}: “é”."} for number in range(ROWS)]
    (folder / "blip3.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return folder


def gpt(folder: Path) -> Path:
    extract(share_gpt(folder), files("image/{}.png"))
    return folder


def emoji(folder: Path) -> Path:
    folder.mkdir()
    write_pairs(folder, PICTURES, PAIRS)
    return folder


class Rows:
    """The rows of a layout, decoded."""

    def __init__(self, folder: AnyPath | str, kind: Kind = "edit", split: str = "train", *, notes: Path | None = None):
        path = as_path(str(folder))
        self._rows = open_splits(path, layout_of(path), kind, notes or path.with_name(f"{path.name}.notes"))[split]

    def __len__(self) -> int:
        return len(self._rows.numbers)

    def __getitem__(self, index: int) -> Example:
        return self._rows.raw(index).decoded()

    def __iter__(self) -> Iterator[Example]:
        return map(self.__getitem__, range(len(self)))


def prepared(source: AnyPath, **options) -> AnyPath:
    """What `dim prepare` makes of a source, beside it."""
    out = source.with_name(f"{source.name}-prepared")
    prepare(source, out, **options)
    return out
