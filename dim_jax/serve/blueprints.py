"""Blueprints for a server's edits: by a model behind another server, or by an encoder on the painter's own devices."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image

from dim_jax.designer.blueprint import BLUEPRINT
from dim_jax.designer.choice import DesignerSpec
from dim_jax.designer.clients import Response
from dim_jax.designer.design import write_blueprint
from dim_jax.designer.task import AnswerError
from dim_jax.errors import InputError

if TYPE_CHECKING:  # it imports JAX
    from dim_jax.designer.local import LocalDesigner

CALLS = 8  # to another server at once
log = logging.getLogger("dim_jax.serve")


class BlueprintWriter(NamedTuple):
    """Who writes blueprints.

    Attributes:
        name: the designer's spec, as on the command line.
        write: of sources and instructions the blueprints; None where there is none, with the reason in the log.
        calls: how many calls of `write` wait for another server at once; 0: it computes, and takes a batch at a time.
    """

    name: str
    write: Callable[[Sequence[Image.Image], Sequence[str]], list[str | None]]
    calls: int = 0


def server_writer(choice: DesignerSpec, base_url: str | None = None) -> BlueprintWriter:
    """A model behind a server, asked as `dim edit` does. Answers are not kept, for several are asked for at once.

    Raises:
        InputError: as in `ChatDesigner.open`.
    """
    name = choice.open(base_url=base_url).name

    def write(pictures: Sequence[Image.Image], instructions: Sequence[str]) -> list[str | None]:
        return [_write(choice, base_url, *edit) for edit in zip(pictures, instructions, strict=True)]

    return BlueprintWriter(name, write, CALLS)


def _write(choice: DesignerSpec, base_url: str | None, picture: Image.Image, instruction: str) -> str | None:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "picture.png"
        picture.save(file, compress_level=1)
        try:
            # A client of its own, for it is closed at the end.
            return write_blueprint(file, instruction, choice.open(base_url=base_url), journal_file=Path(folder) / "blueprints.jsonl")
        except InputError as error:
            log.warning("no blueprint: %s", error)
            return None


def local_writer(designer: "LocalDesigner") -> BlueprintWriter:
    """A Qwen2.5-VL on this machine."""

    def parse(answer: Response) -> str | None:
        try:
            if answer.failure:
                raise AnswerError(answer.failure)
            return BLUEPRINT.parse(answer.text)
        except AnswerError as error:
            log.warning("%s wrote no blueprint: %s", designer.name, error)
            return None

    return BlueprintWriter(
        designer.name, lambda pictures, instructions: [parse(answer) for answer in designer.write(pictures, instructions)]
    )
