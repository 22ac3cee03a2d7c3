"""The sets of Draw-In-Mind: jsonl files, one row a line, and pictures in folders or archives beside them.

    tos_dataset_edit.jsonl   DIM-Edit: id, image_path (the source), image_path_target, prompt (the blueprint)
    images.tar.gz.part*      its pictures, `image/...`; extracted or not
    blip3.jsonl ...          DIM-T2I: image_path, and the caption as `prompt` or `caption`. The set has no pictures: put them at image_path,
                             relative to the folder of the jsonl file

    mine.jsonl               own edits: source, target, prompt (the instruction, or a list of its wordings); blueprint, if there is one
    judgements.jsonl         judgements (`dim build-data judgements`): source, result, prompt (as above), answer

A file has edits if its first valid row has a target, judgements if it has a result. Source: github.com/showlab/DIM, README and
data/T2I_DATASET.md.
"""

from contextlib import suppress

import numpy as np

from dim_jax.data.example import JUDGEMENT, KINDS, Kind, LazyImage, RawExample
from dim_jax.datasets.layouts import Layout
from dim_jax.datasets.layouts.archives import ImageStore
from dim_jax.datasets.layouts.rows import JsonLines
from dim_jax.errors import InputError
from dim_jax.storage.paths import AnyPath, entries

OWN_TARGET, PUBLISHED_TARGET = "target", "image_path_target"  # keys that only edits have
RESULT = "result"  # and only judgements


class DimRows:
    """The rows of one kind, of a jsonl file or of all jsonl files in a folder, in order of their names.

    Raises:
        InputError: a file is not jsonl; and when a row is read, with file and line: a field is missing, or a picture cannot be read.
    """

    def __init__(self, path: AnyPath, kind: Kind, index_folder: AnyPath):
        self._kind = kind
        files = [JsonLines(file) for file in (entries(path, "*.jsonl") if path.is_dir() else [path])]
        self._files = [lines for lines in files if len(lines) and _kind(lines) == kind]
        self._starts = np.cumsum([0, *(len(lines) for lines in self._files)])
        self._pictures = ImageStore(path if path.is_dir() else path.parent, index_folder)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def raw(self, index: int) -> RawExample:
        file = int(np.searchsorted(self._starts, index, "right")) - 1
        row = self._files[file][index - int(self._starts[file])]
        key = f"{self._files[file].path.stem}/{row.fields.get('id', index)}"

        def picture(name: str) -> LazyImage:
            return self._pictures.lazy_image(row.text(name), row.where)

        if self._kind == JUDGEMENT:
            return RawExample(key, row.texts("prompt"), row.text("answer"), picture("source"), picture(RESULT), JUDGEMENT)
        if self._kind == "caption":
            return RawExample(key, (row.text("prompt", "caption"),), None, None, picture("image_path"))
        if OWN_TARGET in row.fields:
            blueprint = row.text("blueprint") if row.fields.get("blueprint") is not None else None
            return RawExample(key, row.texts("prompt"), blueprint, picture("source"), picture(OWN_TARGET))
        text = row.text("prompt", "caption")
        return RawExample(key, (text,), text, picture("image_path"), picture(PUBLISHED_TARGET))


def _kind(lines: JsonLines) -> Kind:
    for number in range(len(lines)):
        with suppress(InputError):
            keys = lines[number].fields.keys()
            return JUDGEMENT if RESULT in keys else "caption" if keys.isdisjoint((OWN_TARGET, PUBLISHED_TARGET)) else "edit"
    lines[0]  # no row is valid: raise the error of the first
    return "caption"


LAYOUT = Layout(
    lambda path: path.is_file() or (bool(entries(path, "*.jsonl")) and not entries(path, "*.array_record")),
    DimRows,
    "*.jsonl of image_path and prompt, with image_path_target or of source, target and prompt for edits",
    kinds=KINDS,
)
