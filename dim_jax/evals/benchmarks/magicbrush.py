"""MagicBrush, turn by turn: each edit starts at the makers' own picture of the turn before. Source: arXiv 2306.10012; data: the makers' zip
of the test (1,053 edits in 535 sessions), or osunlp/MagicBrush.

edit_sessions.json: {"139306": [{"input": "139306-input.png", "mask": ..., "output": "139306-output1.png", "instruction": ...}]}, with the
pictures as images/139306/139306-input.png; global_descriptions.json has a caption of each. Or parquet with img_id, turn_index, source_img,
mask_img, instruction, target_img.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dim_jax.errors import InputError
from dim_jax.evals.benchmark import Benchmark, Case
from dim_jax.evals.reading import PictureFinder, find_file, read_parquet, require_text, store_picture
from dim_jax.storage.paths import read_json, read_object

SESSIONS = "edit_sessions.json"
METRICS = ("l1", "l2", "clip_i", "dino", "clip_t")


class Turn(NamedTuple):
    """One edit of a session; `number` counts from 1."""

    session: str
    number: int
    source: Path
    mask: Path
    target: Path
    instruction: str
    caption: str | None


def read_turns(data: Path) -> list[Turn]:
    """The turns of all sessions, in order."""
    if data.is_dir() and not (data / SESSIONS).is_file():
        return _of_parquet(data)
    path = find_file(data, (SESSIONS,), "MagicBrush")
    folder, sessions = path.parent, read_json(path)
    captions = read_object(folder / "global_descriptions.json") if (folder / "global_descriptions.json").is_file() else {}
    if not isinstance(sessions, dict) or not all(isinstance(named, dict | None) for named in captions.values()):
        raise InputError(f"{path}: must be an object with a list of edits for each session. Download it again.")
    pictures, turns = PictureFinder(folder / "images"), []
    for session, number, where, edit in _edits(path, sessions):
        names = [require_text(edit, key, where) for key in ("input", "mask", "output")]
        source, mask, target = (pictures.find(f"{session}/{name}", where) for name in names)
        caption = (captions.get(session) or {}).get(names[2])
        turns.append(Turn(session, number, source, mask, target, require_text(edit, "instruction", where), caption))
    pictures.check()
    return turns


def _edits(path: Path, sessions: dict[str, Any]) -> Iterator[tuple[str, int, str, dict[str, Any]]]:
    for session, edits in sessions.items():
        if not isinstance(edits, list) or not all(isinstance(edit, dict) for edit in edits):
            raise InputError(f'{path}, session "{session}": is not a list of edits. Download it again.')
        for number, edit in enumerate(edits, 1):
            yield session, number, f'{path}, session "{session}", turn {number}', edit


def _of_parquet(data: Path) -> list[Turn]:
    turns = []
    columns = ("img_id", "turn_index", "source_img", "mask_img", "instruction", "target_img")
    for where, row in read_parquet(data, columns, "MagicBrush"):
        source, mask, target = (store_picture(row[key], where) for key in ("source_img", "mask_img", "target_img"))
        turns.append(Turn(str(row["img_id"]), int(row["turn_index"]), source, mask, target, require_text(row, "instruction", where), None))
    return sorted(turns, key=lambda turn: (turn.session, turn.number))


def read(data: Path) -> list[Case]:
    """A case for each turn; its metadata holds the caption of the target, where there is one."""
    return [
        Case(f"{turn.session}-{turn.number}", f"turn {turn.number}", turn.instruction, turn.source, turn.target, mask=turn.mask,
             metadata={"session": turn.session, "turn": turn.number, "caption": turn.caption})
        for turn in read_turns(data)
    ]  # fmt: skip


def _official(case: Case, k: int) -> str:
    session, turn = case.metadata["session"], case.metadata["turn"]
    return f"{session}/{session}_1.png" if turn == 1 else f"{session}/{session}_inde_{turn}.png"


BENCHMARK = Benchmark(
    name="magicbrush", title="MagicBrush (single turn)", kind="edit", read=read, official=_official, metrics=METRICS, size=1053
)
