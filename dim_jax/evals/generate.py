"""Painting the cases of a benchmark, each track from the bare instructions: what is painted is kept at once, and never painted again.

direct: the painter reads the instruction. designed: it reads the blueprint of a designer. reflected: the designer also looks at source and
result, says how good it is and whether another attempt, from the source again, is worth while; of at most N rounds the one that it scores
highest is the result. The first round is the designed one. All tracks begin with the same noise.
"""

import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dim_jax.batching import Source
from dim_jax.designer.journal import JsonlLog
from dim_jax.designer.runner import Job
from dim_jax.errors import InputError
from dim_jax.evals.benchmark import Benchmark, Case, Track, read_finished
from dim_jax.evals.designs import EvalDesigner, parse
from dim_jax.evals.metrics import mse, unit_pixels
from dim_jax.evals.pictures import LATENTS, PictureRequest, PictureStore, is_complete, link
from dim_jax.processing.pictures import open_picture, picture_size
from dim_jax.storage.folders import make_folder
from dim_jax.storage.paths import open_regular

CHUNK = 256  # cases whose sources are in memory at once
PICTURES = "pictures"


def seed_of(case: Case, seed: int, source: Image.Image | None) -> int:
    """The noise of a case follows from the case and the seed of the run, not from what else is painted."""
    case_seed = zlib.crc32(f"{seed} {case.id}".encode())
    return (case_seed if source is None else zlib.crc32(source.tobytes(), case_seed)) >> 1


@dataclass
class _CaseState:
    """A case that is being painted: the source of its next turn (`file` is that picture), and the results so far."""

    case: Case
    source: Image.Image | Source | None
    file: Path | None
    seed: int
    remaining: int  # pictures
    texts: list[str] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def turns(self) -> tuple[str, ...]:
        return self.case.turns or (self.case.prompt,)

    def name(self, turn: int, k: int | None = None, attempt: int | None = None) -> str:
        """Of a picture's file below `pictures`."""
        ends = (f".t{turn + 1}" if self.case.turns else "", "" if k is None else f".{k}", "" if attempt is None else f".r{attempt}")
        return self.case.file + "".join(ends)

    def noise(self, *which: str) -> int:
        """The seed of the first picture, and others by what tells them apart."""
        return zlib.crc32(" ".join(which).encode(), self.seed) >> 1 if which else self.seed


@dataclass(frozen=True)
class Generator:
    """Paints a benchmark.

    Attributes:
        benchmark, out: what, and where to.
        store: the painter with its settings; its folder is that of `out`.
        designer: writes blueprints; None: only the direct track is painted.
        seed: of the noise.
        rounds: of the reflected track, at most.
        tag: the end of this shard's files, such as ".2of4".
        progress: show bars.
    """

    benchmark: Benchmark
    out: Path
    store: PictureStore
    designer: EvalDesigner | None = None
    seed: int = 0
    rounds: int = 3
    tag: str = ""
    progress: bool = False

    def paint(self, track: Track, cases: Sequence[Case]) -> dict[str, str]:
        """Paint what is not finished. Returns the cases that could not be, by id, and why: the designer wrote no blueprint.

        Raises:
            InputError: a source cannot be read, another run paints the same, a limit was reached, or as `PictureStore.paint`.
        """
        folder = self.out / track
        make_folder(folder)
        failed: dict[str, str] = {}
        with closing(JsonlLog.locked(folder / f"cases{self.tag}.jsonl", wait=False)) as lines:
            for _ in lines.read():  # cuts off what a kill has torn
                pass
            finished = read_finished(folder)
            remaining = [case for case in cases if not _is_finished(folder, case, finished.get(case.id))]
            remaining.sort(key=_aspect_ratio)  # so that pictures of one size fill a batch
            for start in range(0, len(remaining), CHUNK):
                failed |= self._paint_chunk(track, remaining[start : start + CHUNK], lines)
        return failed

    def _paint_chunk(self, track: Track, cases: Sequence[Case], lines: JsonlLog) -> dict[str, str]:
        states, failed = [self._start(case) for case in cases], dict[str, str]()
        for turn in range(max(len(state.turns) for state in states)):
            states = [state for state in states if turn < len(state.turns)]
            instructions = {state.case.id: state.turns[turn] for state in states}
            if track != "direct":
                instructions, reasons = self._blueprints(track, states, instructions, turn, 1)
                failed |= reasons
                states = [state for state in states if state.case.id in instructions]
            if track == "reflected":
                self._paint_rounds(states, instructions, turn)
                done = states
            else:
                done = self._paint_turn(track, states, instructions, turn)
            for state in done:
                if not state.remaining:
                    self._finish(track, state, lines)
        return failed

    def _start(self, case: Case) -> _CaseState:
        picture = None if case.source is None else open_picture(case.source)
        remaining = self.benchmark.pictures_per_case * len(case.turns or (1,))
        return _CaseState(case, picture, case.source, seed_of(case, self.seed, picture), remaining)

    def _edit(
        self, state: _CaseState, text: str, name: str, noise: Sequence[str], turn: int, same_as: Path | None = None
    ) -> PictureRequest:
        instruction = state.turns[turn]
        designer = self.designer.name if self.designer and text != instruction else "none"
        has_more_turns = turn + 1 < len(state.turns)
        original = "" if text == instruction else instruction
        return PictureRequest(name, text, state.source, state.noise(*noise), designer, original, same_as, keep_latents=has_more_turns)

    def _paint_turn(self, track: Track, states: Sequence[_CaseState], texts: dict[str, str], turn: int) -> Iterator[_CaseState]:
        """Paint one turn of the cases; gives each when its last picture is there."""
        store, has_several = self._store(track), self.benchmark.pictures_per_case > 1
        edits, owners = [], []
        for state in states:
            for k in range(self.benchmark.pictures_per_case):
                noise = (*([f"turn {turn + 1}"] if turn else []), *([f"picture {k}"] if k else []))
                name = state.name(turn, k if has_several else None)
                edits.append(self._edit(state, texts[state.case.id], name, noise, turn))
                owners.append(state)
            state.texts.append(texts[state.case.id])
        remaining = {id(state): self.benchmark.pictures_per_case for state in states}
        for i, seconds in _timed(store, edits, self.progress):
            state = owners[i]
            state.seconds, state.remaining, remaining[id(state)] = state.seconds + seconds, state.remaining - 1, remaining[id(state)] - 1
            if not remaining[id(state)]:
                own_edits = [edit for edit, owner in zip(edits, owners, strict=True) if owner is state] if has_several else [edits[i]]
                state.pictures += [f"{PICTURES}/{edit.name}.png" for edit in own_edits]
                if own_edits[-1].keep_latents:
                    state.source, state.file = store.source(own_edits[-1]), store.file(own_edits[-1])
                yield state

    def _paint_rounds(self, states: Sequence[_CaseState], texts: dict[str, str], turn: int) -> None:
        """Paint one turn of the cases in rounds."""
        assert self.designer is not None
        store, first, folder = self._store("reflected"), self._store("designed"), self.out / "reflected"
        open_works, edits, instructions = (
            list(states),
            dict[str, list[PictureRequest]](),
            {state.case.id: state.turns[turn] for state in states},
        )
        for attempt in range(1, self.rounds + 1):
            noise = (*([f"turn {turn + 1}"] if turn else []), *([f"round {attempt}"] if attempt > 1 else []))
            round_edits = []
            for state in open_works:
                same_as = first.folder / f"{state.name(turn)}.png" if attempt == 1 else None
                round_edits.append(self._edit(state, texts[state.case.id], state.name(turn, attempt=attempt), noise, turn, same_as))
                edits.setdefault(state.case.id, []).append(round_edits[-1])
            for i, seconds in _timed(store, round_edits, self.progress):
                open_works[i].seconds += seconds
            jobs = [
                Job((_file(state), store.file(edit)), state.turns[turn], {"id": f"{state.case.id}{_turn_suffix(turn)}.r{attempt}"})
                for state, edit in zip(open_works, round_edits, strict=True)
            ]
            answers = self.designer.reflections(folder, jobs)
            continuing, next_instructions = [], dict[str, str]()
            for state, edit, job in zip(open_works, round_edits, jobs, strict=True):
                text = answers.texts.get(job.row["id"])
                row: dict[str, Any] = {"turn": turn + 1, "picture": f"{PICTURES}/{edit.name}.png"}
                row |= {"instruction": instructions[state.case.id], "painted_prompt": edit.prompt}
                if text is None:
                    row["failed"] = answers.reasons.get(job.row["id"], "not asked")
                else:
                    reflection = parse(text)
                    row |= {"done": reflection.done, "score": reflection.score, "reason": reflection.reason}
                    if not reflection.done and attempt < self.rounds:
                        continuing.append(state)
                        next_instructions[state.case.id] = reflection.instruction
                state.rounds.append(row)
            if not continuing:
                break
            texts, reasons = self._blueprints("reflected", continuing, next_instructions, turn, attempt + 1)
            for state in continuing:
                if state.case.id in reasons:
                    state.rounds[-1]["failed"] = f"no blueprint for the next round: {reasons[state.case.id]}"
            open_works, instructions = [state for state in continuing if state.case.id in texts], next_instructions
        for state in states:
            self._choose(store, state, edits[state.case.id], turn)

    def _choose(self, store: PictureStore, state: _CaseState, edits: Sequence[PictureRequest], turn: int) -> None:
        """Takes the round that the designer scores highest, the first of several, for the result."""
        rounds = state.rounds[-len(edits) :]
        best = max(range(len(edits)), key=lambda i: (rounds[i].get("score", -1.0), -i))
        rounds[best]["best"] = True
        if state.case.target is not None and turn + 1 == len(state.turns):
            target = open_picture(state.case.target)
            size = (target.height, target.width)
            pixels = unit_pixels(target, size)
            errors = [mse(unit_pixels(open_picture(store.file(edit)), size), pixels) for edit in edits]
            rounds[int(np.argmin(errors))]["oracle"] = True
        chosen, name = store.file(edits[best]), state.name(turn)
        link(chosen, store.folder / f"{name}.png")
        state.pictures.append(f"{PICTURES}/{name}.png")
        state.texts.append(edits[best].prompt)
        state.remaining -= 1
        if edits[best].keep_latents:
            state.source, state.file = store.source(edits[best]), store.folder / f"{name}.png"

    def _blueprints(
        self, track: Track, states: Sequence[_CaseState], instructions: dict[str, str], turn: int, attempt: int
    ) -> tuple[dict[str, str], dict[str, str]]:
        """By case what the painter reads; and of those without, why."""
        if self.designer is None:
            raise InputError(f"The track {track} needs a designer that writes blueprints. Give one (--designer).")
        end = "" if attempt == 1 else f".r{attempt}"
        ids = {state.case.id: f"{state.case.id}{_turn_suffix(turn)}{end}" for state in states}
        jobs = [
            Job(() if state.file is None else (state.file,), instructions[state.case.id], {"id": ids[state.case.id]}) for state in states
        ]
        # The first round is the designed one, which may have been asked for; and the other way round.
        other_tracks = [self.out / other for other in ("designed", "reflected") if other != track]
        answers = self.designer.blueprints(self.out / track, jobs, other_tracks)
        texts = {case: answers.texts[name] for case, name in ids.items() if name in answers.texts}
        return texts, {case: answers.reasons.get(name, "not asked") for case, name in ids.items() if case not in texts}

    def _finish(self, track: Track, state: _CaseState, lines: JsonlLog) -> None:
        row: dict[str, Any] = {
            "id": state.case.id, "category": state.case.category, "prompt": state.case.prompt,
            "painted_prompt": "\n\n".join(state.texts), "pictures": state.pictures, "seconds": round(state.seconds, 3),
        }  # fmt: skip
        if track == "reflected":
            row["rounds"] = state.rounds
        lines.append(row)
        folder = self._store(track).folder
        for text in state.pictures[:-1]:
            for latents in folder.glob(f"{Path(text).relative_to(PICTURES).with_suffix('')}*{LATENTS}"):
                latents.unlink()

    def _store(self, track: Track) -> PictureStore:
        return PictureStore(self.out / track / PICTURES, self.store.painter, self.store.settings, self.store.weights)


def _timed(store: PictureStore, edits: Sequence[PictureRequest], progress: bool) -> Iterator[tuple[int, float]]:
    """The number of each edit once it is there, and how long it took: the mean of what was painted so far; 0 if it was there before."""
    start, painted = time.perf_counter(), 0
    for i, result in store.paint(edits, progress=progress):
        painted += result is not None
        yield i, 0.0 if result is None else (time.perf_counter() - start) / painted


def _turn_suffix(turn: int) -> str:
    """As `EditSession` names the rounds of an edit among ready blueprints."""
    return f".{turn + 1}" if turn else ""


def _file(state: _CaseState) -> Path:
    assert state.file is not None
    return state.file


def _aspect_ratio(case: Case) -> float:
    if case.source is None:
        return 1.0
    with open_regular(case.source) as file:
        width, height = picture_size(file, str(case.source))
    return width / height


def _is_finished(folder: Path, case: Case, row: dict[str, Any] | None) -> bool:
    return row is not None and row.get("prompt") == case.prompt and all(is_complete(folder / name) for name in row["pictures"])
