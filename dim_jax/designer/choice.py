"""Parses `--designer KIND:NAME`."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dim_jax.designer.clients import MAX_TOKENS, SERVERS, ChatDesigner, Designer, Request, Response
from dim_jax.designer.responses import replace_surrogates
from dim_jax.errors import InputError, check
from dim_jax.storage.jsonl import read_values

ONLINE = (*SERVERS, "azure")
KINDS = {**dict.fromkeys(SERVERS, "MODEL"), "azure": "DEPLOYMENT", "file": "BLUEPRINTS.jsonl", "local": "[FOLDER]", "none": ""}
SPECS = f"{', '.join(f'{kind}:{name}' for kind, name in KINDS.items() if kind not in ('local', 'none'))}, local, local:FOLDER, none"


class DesignerSpec(NamedTuple):
    """A designer by kind and name; some kinds have no name."""

    kind: str
    name: str

    @classmethod
    def parse(cls, spec: str) -> "DesignerSpec":
        """From `openai:gpt-4o`, `file:cot.jsonl`, `local` ...; a name may hold colons, and that of `local` may be left out.

        Raises:
            InputError: the kind is unknown, or a name is missing or not allowed.
        """
        kind, _, name = spec.partition(":")
        check(kind in KINDS, f'"{spec}" is not a designer. Write one of: {SPECS}.')
        if kind != "local" and bool(name) != bool(KINDS[kind]):
            usage = f"{kind}:{KINDS[kind]}" if KINDS[kind] else kind
            raise InputError(f'"{spec}": write {usage}.')
        return cls(kind, name)

    @property
    def online(self) -> bool:
        """Whether answers come from a server, which costs time or money."""
        return self.kind in ONLINE

    def open(self, *, base_url: str | None = None, max_tokens: int = MAX_TOKENS, time_limit: float = 180.0) -> Designer:
        """The designer of any kind but `local`, which loads a model, and `none`. Options as in `ChatDesigner.open`.

        Raises:
            InputError: as in `ChatDesigner.open` and `FileDesigner.open`.
        """
        if self.kind == "file":
            return FileDesigner.open(Path(self.name))
        return ChatDesigner.open(self.kind, self.name, base_url=base_url, max_tokens=max_tokens, time_limit=time_limit)


@dataclass(frozen=True)
class FileDesigner:
    """Blueprints from a file, by id."""

    name: str
    texts: dict[str, str]
    max_tokens: int = 0

    @classmethod
    def open(cls, path: Path) -> "FileDesigner":
        """From a jsonl of objects with `id` and `prompt` (the blueprint), as published and as `dim design` writes it.

        Raises:
            InputError: the file cannot be read, a line is not such an object, or an id has two blueprints.
        """
        texts: dict[str, str] = {}
        for where, row in read_rows(path):
            row["prompt"] = replace_surrogates(row["prompt"])
            if texts.setdefault(row["id"], row["prompt"]) != row["prompt"]:
                raise InputError(f'{where}: id "{row["id"]}" has another blueprint above. Remove one of them.')
        return cls(f"file:{path}", texts)

    async def complete(self, request: Request) -> Response:
        if request.id not in self.texts:
            return Response("", f'{self.name.partition(":")[2]} has no id "{request.id}"')
        return Response(self.texts[request.id])

    async def close(self) -> None:
        """Nothing is open."""


def read_rows(path: Path) -> Iterator[tuple[str, dict]]:
    """The position (for errors) and the object of each line of a jsonl; each has texts `id` and `prompt` at least. A number as id becomes
    text.

    Raises:
        InputError: the file cannot be read, or a line is not such an object.
    """
    for where, row in read_values(path):
        if not isinstance(row, dict) or not isinstance(row.get("id"), str | int) or not isinstance(row.get("prompt"), str):
            raise InputError(f'{where}: each line must be an object with the texts "id" and "prompt".')
        yield where, {**row, "id": str(row["id"])}
