"""ShareGPT-4o-Image: two JSON arrays, and pictures in folders or archives beside them.

    text_to_image.json              input_prompt, output_image
    text_and_image_to_image.json    input_prompt, input_image (a list of one), output_image
    text_to_image_part_0.tar ...    the pictures, `image/...`; extracted or not

Source: huggingface.co/datasets/FreedomIntelligence/ShareGPT-4o-Image.
"""

from dim_jax.data.example import Kind, RawExample
from dim_jax.datasets.layouts import Layout
from dim_jax.datasets.layouts.archives import ImageStore
from dim_jax.datasets.layouts.rows import JsonArray
from dim_jax.errors import InputError
from dim_jax.storage.paths import AnyPath

FILES = {"edit": "text_and_image_to_image.json", "caption": "text_to_image.json"}


class ShareGPT4oRows:
    """The rows of one kind; none, if the folder has only the other file.

    Raises:
        InputError: the file is not a JSON array; and when a row is read, with its number: a field is missing, there are several source
            pictures, or one cannot be read.
    """

    def __init__(self, folder: AnyPath, kind: Kind, index_folder: AnyPath):
        path = folder / FILES[kind]
        self._edit = kind == "edit"
        self._rows = JsonArray(path) if path.exists() else ()
        self._pictures = ImageStore(folder, index_folder)

    def __len__(self) -> int:
        return len(self._rows)

    def raw(self, index: int) -> RawExample:
        row = self._rows[index]
        text, target = row.text("input_prompt"), self._pictures.lazy_image(row.text("output_image"), row.where)
        key = f"sharegpt4o/{row.fields['output_image']}"
        if not self._edit:
            return RawExample(key, (text,), None, None, target)
        inputs = row.fields.get("input_image")
        if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], str):
            raise InputError(f"{row.where}: input_image is {inputs!r}, but must be a list of one path. Repair the row, or remove it.")
        return RawExample(key, (text,), None, self._pictures.lazy_image(inputs[0], row.where), target)


LAYOUT = Layout(lambda path: any((path / name).exists() for name in FILES.values()), ShareGPT4oRows, f"{' or '.join(FILES.values())}")
