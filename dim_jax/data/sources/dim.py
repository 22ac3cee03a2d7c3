"""The sets of Draw-In-Mind: jsonl files, one row a line, and pictures in folders or archives beside them.

    tos_dataset_edit.jsonl   DIM-Edit: id, image_path (the source), image_path_target, prompt (the blueprint)
    images.tar.gz.part*      its pictures, `image/...`; extracted or not
    blip3.jsonl ...          DIM-T2I: image_path, and the caption as `prompt` or `caption`. The set brings no pictures: put them where
                             image_path names them, from the folder of the jsonl file on

A file is of edits if its first sound row has `image_path_target`. Source: github.com/showlab/DIM, README and data/T2I_DATASET.md.
"""

from contextlib import suppress
from typing import Literal

import numpy as np

from dim_jax.data.raw_example import RawExample
from dim_jax.data.sources.archives import ImageStore
from dim_jax.data.sources.rows import JsonLines
from dim_jax.errors import InputError
from dim_jax.paths import AnyPath, entries

TARGET = "image_path_target"


class Dim:
    """The rows of one kind, of a jsonl file or of all that lie in a folder, in order of their names.

    Raises:
        InputError: a file is no jsonl; and when a row is read, with file and line: a field is missing, or a picture cannot be read.
    """

    def __init__(self, path: AnyPath, kind: Literal["edit", "caption"], index: AnyPath):
        self._edit = kind == "edit"
        found = [JsonLines(file) for file in (entries(path, "*.jsonl") if path.is_dir() else [path])]
        self._files = [lines for lines in found if len(lines) and _of_edits(lines) == self._edit]
        self._starts = np.cumsum([0, *(len(lines) for lines in self._files)])
        self._pictures = ImageStore(path if path.is_dir() else path.parent, index)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def entry(self, index: int) -> RawExample:
        file = int(np.searchsorted(self._starts, index, "right")) - 1
        row = self._files[file][index - int(self._starts[file])]
        text = row.text("prompt", "caption")
        picture = self._pictures.stored(row.text("image_path"), row.where)
        key = f"{self._files[file].path.stem}/{row.fields.get('id', index)}"
        if not self._edit:
            return RawExample(key, (text,), None, None, picture)
        return RawExample(key, (text,), text, picture, self._pictures.stored(row.text(TARGET), row.where))


def _of_edits(lines: JsonLines) -> bool:
    for number in range(len(lines)):
        with suppress(InputError):
            return TARGET in lines[number].fields
    return TARGET in lines[0].fields  # none is sound, as the first one says
