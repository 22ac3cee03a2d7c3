"""`dim index`: what is to be known of a source before it is trained on, written once: members of its archives, facts of its rows."""

import json

from rich.console import Console

from dim_jax.data.chat import ChatTokenizer
from dim_jax.data.row_stats import RowCounter, read_facts, write_facts
from dim_jax.data.sources import KINDS, index_folder, kinds_of, open_source, open_split
from dim_jax.data.sources.archives import MEMBERS, find_archives, index_archives
from dim_jax.errors import InputError
from dim_jax.folders import new_file
from dim_jax.paths import as_path

BAD = ".bad_samples.jsonl"


def index_source(
    source: str,
    tokenizer: ChatTokenizer | None,
    *,
    into: str = "",
    allowed: int = 0,
    workers: int = 0,
    overwrite: bool = False,
    console: Console | None = None,
) -> dict[str, int]:
    """Write the index of a source beside it, or into the folder `into` under the source's name. What is there already is kept.

    Args:
        source: as in `open_source`, but not synthetic.
        tokenizer: counts the texts, as the encoder that is to read them; None counts none.
        allowed: how many rows of a kind may be unusable; held out or not; they are listed in KIND.bad_samples.jsonl.
        workers: processes that count.
        overwrite: begin anew.
        console: where progress is shown.

    Returns:
        The number of rows of each kind.

    Raises:
        InputError: the source cannot be used; a row cannot, and more than `allowed` are so; or what is there already does not fit.
    """
    folder = index_folder(source, into)
    if overwrite:
        for name in (MEMBERS, *(f"{kind}{ending}" for kind in KINDS for ending in (".npz", BAD))):
            (folder / name).unlink(missing_ok=True)
    place = as_path(source)
    root = place if place.is_dir() else place.parent
    if root.is_dir() and not (folder / MEMBERS).exists() and find_archives(root, folder):
        index_archives(root, folder, console)
    found = {}
    for kind in kinds_of(source, into):
        rows, path = open_source(source, kind, split="train", side=0, index=into), folder / f"{kind}.npz"
        counting = RowCounter(rows, tokenizer, sized=True)
        found[kind] = len(rows)
        if path.exists():
            read_facts(path, counting)
            continue
        held_out = RowCounter(open_split(place, kind, "test", folder), None, sized=True)  # no plan needs their facts
        known = [one._replace(split="test") for one in held_out.facts(range(len(held_out.source)))[1]]
        bad = write_facts(counting, path, allowed=allowed, workers=workers, console=console, known=known)
        if bad:
            with new_file(folder / f"{kind}{BAD}") as scratch:
                lines = (json.dumps(one._asdict(), ensure_ascii=False) + "\n" for one in bad)
                scratch.write_text("".join(lines), encoding="utf-8", errors="backslashreplace")
            if console is not None:
                said = f"{kind}: unusable rows: {len(bad)}, listed in {folder / f'{kind}{BAD}'}. The first: {bad[0].error}"
                console.out(said, highlight=False)
    if not found:
        raise InputError(f"{source}: holds no rows.")
    return found
