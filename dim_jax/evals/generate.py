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

from dim_jax.designer.journal import JsonlLog
from dim_jax.designer.runner import Job
from dim_jax.errors import InputError
from dim_jax.evals.benchmark import Benchmark, Case, Track, read_finished
from dim_jax.evals.designs import EvalDesigner, parse
from dim_jax.evals.metrics import mse, unit_pixels
from dim_jax.evals.pictures import LATENTS, PictureRequest, PictureStore, is_complete, link
from dim_jax.processing.pictures import open_picture, picture_size
from dim_jax.sampling import Source
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
        album: the painter with its settings; its folder is that of `out`.
        designer: writes blueprints; None: only the direct track is painted.
        seed: of the noise.
        rounds: of the reflected track, at most.
        tag: the end of this shard's files, such as ".2of4".
        progress: show bars.
    """

    benchmark: Benchmark
    out: Path
    album: PictureStore
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
        works, failed = [self._start(case) for case in cases], dict[str, str]()
        for turn in range(max(len(work.turns) for work in works)):
            works = [work for work in works if turn < len(work.turns)]
            instructions = {work.case.id: work.turns[turn] for work in works}
            if track != "direct":
                instructions, reasons = self._blueprints(track, works, instructions, turn, 1)
                failed |= reasons
                works = [work for work in works if work.case.id in instructions]
            if track == "reflected":
                self._paint_rounds(works, instructions, turn)
                done = works
            else:
                done = self._paint_turn(track, works, instructions, turn)
            for work in done:
                if not work.remaining:
                    self._finish(track, work, lines)
        return failed

    def _start(self, case: Case) -> _CaseState:
        picture = None if case.source is None else open_picture(case.source)
        remaining = self.benchmark.pictures_per_case * len(case.turns or (1,))
        return _CaseState(case, picture, case.source, seed_of(case, self.seed, picture), remaining)

    def _edit(self, work: _CaseState, text: str, name: str, noise: Sequence[str], turn: int, same_as: Path | None = None) -> PictureRequest:
        instruction = work.turns[turn]
        designer = self.designer.name if self.designer and text != instruction else "none"
        has_more_turns = turn + 1 < len(work.turns)
        original = "" if text == instruction else instruction
        return PictureRequest(name, text, work.source, work.noise(*noise), designer, original, same_as, keep_latents=has_more_turns)

    def _paint_turn(self, track: Track, works: Sequence[_CaseState], texts: dict[str, str], turn: int) -> Iterator[_CaseState]:
        """Paint one turn of the cases; gives each when its last picture is there."""
        album, has_several = self._album(track), self.benchmark.pictures_per_case > 1
        edits, owners = [], []
        for work in works:
            for k in range(self.benchmark.pictures_per_case):
                noise = (*([f"turn {turn + 1}"] if turn else []), *([f"picture {k}"] if k else []))
                name = work.name(turn, k if has_several else None)
                edits.append(self._edit(work, texts[work.case.id], name, noise, turn))
                owners.append(work)
            work.texts.append(texts[work.case.id])
        remaining = {id(work): self.benchmark.pictures_per_case for work in works}
        for i, seconds in _timed(album, edits, self.progress):
            work = owners[i]
            work.seconds, work.remaining, remaining[id(work)] = work.seconds + seconds, work.remaining - 1, remaining[id(work)] - 1
            if not remaining[id(work)]:
                own_edits = [edit for edit, owner in zip(edits, owners, strict=True) if owner is work] if has_several else [edits[i]]
                work.pictures += [f"{PICTURES}/{edit.name}.png" for edit in own_edits]
                if own_edits[-1].keep_latents:
                    work.source, work.file = album.source(own_edits[-1]), album.file(own_edits[-1])
                yield work

    def _paint_rounds(self, works: Sequence[_CaseState], texts: dict[str, str], turn: int) -> None:
        """Paint one turn of the cases in rounds."""
        assert self.designer is not None
        album, first, folder = self._album("reflected"), self._album("designed"), self.out / "reflected"
        open_works, edits, instructions = list(works), dict[str, list[PictureRequest]](), {work.case.id: work.turns[turn] for work in works}
        for attempt in range(1, self.rounds + 1):
            noise = (*([f"turn {turn + 1}"] if turn else []), *([f"round {attempt}"] if attempt > 1 else []))
            round_edits = []
            for work in open_works:
                same_as = first.folder / f"{work.name(turn)}.png" if attempt == 1 else None
                round_edits.append(self._edit(work, texts[work.case.id], work.name(turn, attempt=attempt), noise, turn, same_as))
                edits.setdefault(work.case.id, []).append(round_edits[-1])
            for i, seconds in _timed(album, round_edits, self.progress):
                open_works[i].seconds += seconds
            jobs = [
                Job((_file(work), album.file(edit)), work.turns[turn], {"id": f"{work.case.id}{_turn_suffix(turn)}.r{attempt}"})
                for work, edit in zip(open_works, round_edits, strict=True)
            ]
            answers = self.designer.reflections(folder, jobs)
            continuing, next_instructions = [], dict[str, str]()
            for work, edit, job in zip(open_works, round_edits, jobs, strict=True):
                text = answers.texts.get(job.row["id"])
                row: dict[str, Any] = {"turn": turn + 1, "picture": f"{PICTURES}/{edit.name}.png"}
                row |= {"instruction": instructions[work.case.id], "painted_prompt": edit.prompt}
                if text is None:
                    row["failed"] = answers.reasons.get(job.row["id"], "not asked")
                else:
                    reflection = parse(text)
                    row |= {"done": reflection.done, "score": reflection.score, "reason": reflection.reason}
                    if not reflection.done and attempt < self.rounds:
                        continuing.append(work)
                        next_instructions[work.case.id] = reflection.instruction
                work.rounds.append(row)
            if not continuing:
                break
            texts, reasons = self._blueprints("reflected", continuing, next_instructions, turn, attempt + 1)
            for work in continuing:
                if work.case.id in reasons:
                    work.rounds[-1]["failed"] = f"no blueprint for the next round: {reasons[work.case.id]}"
            open_works, instructions = [work for work in continuing if work.case.id in texts], next_instructions
        for work in works:
            self._choose(album, work, edits[work.case.id], turn)

    def _choose(self, album: PictureStore, work: _CaseState, edits: Sequence[PictureRequest], turn: int) -> None:
        """Takes the round that the designer scores highest, the first of several, for the result."""
        rounds = work.rounds[-len(edits) :]
        best = max(range(len(edits)), key=lambda i: (rounds[i].get("score", -1.0), -i))
        rounds[best]["best"] = True
        if work.case.target is not None and turn + 1 == len(work.turns):
            target = open_picture(work.case.target)
            size = (target.height, target.width)
            pixels = unit_pixels(target, size)
            errors = [mse(unit_pixels(open_picture(album.file(edit)), size), pixels) for edit in edits]
            rounds[int(np.argmin(errors))]["oracle"] = True
        chosen, name = album.file(edits[best]), work.name(turn)
        link(chosen, album.folder / f"{name}.png")
        work.pictures.append(f"{PICTURES}/{name}.png")
        work.texts.append(edits[best].prompt)
        work.remaining -= 1
        if edits[best].keep_latents:
            work.source, work.file = album.source(edits[best]), album.folder / f"{name}.png"

    def _blueprints(
        self, track: Track, works: Sequence[_CaseState], instructions: dict[str, str], turn: int, attempt: int
    ) -> tuple[dict[str, str], dict[str, str]]:
        """By case what the painter reads; and of those without, why."""
        if self.designer is None:
            raise InputError(f"The track {track} needs a designer that writes blueprints. Give one (--designer).")
        end = "" if attempt == 1 else f".r{attempt}"
        ids = {work.case.id: f"{work.case.id}{_turn_suffix(turn)}{end}" for work in works}
        jobs = [Job(() if work.file is None else (work.file,), instructions[work.case.id], {"id": ids[work.case.id]}) for work in works]
        # The first round is the designed one, which may have been asked for; and the other way round.
        other_tracks = [self.out / other for other in ("designed", "reflected") if other != track]
        answers = self.designer.blueprints(self.out / track, jobs, other_tracks)
        texts = {case: answers.texts[name] for case, name in ids.items() if name in answers.texts}
        return texts, {case: answers.reasons.get(name, "not asked") for case, name in ids.items() if case not in texts}

    def _finish(self, track: Track, work: _CaseState, lines: JsonlLog) -> None:
        row: dict[str, Any] = {
            "id": work.case.id, "category": work.case.category, "prompt": work.case.prompt,
            "painted_prompt": "\n\n".join(work.texts), "pictures": work.pictures, "seconds": round(work.seconds, 3),
        }  # fmt: skip
        if track == "reflected":
            row["rounds"] = work.rounds
        lines.append(row)
        folder = self._album(track).folder
        for text in work.pictures[:-1]:
            for latents in folder.glob(f"{Path(text).relative_to(PICTURES).with_suffix('')}*{LATENTS}"):
                latents.unlink()

    def _album(self, track: Track) -> PictureStore:
        return PictureStore(self.out / track / PICTURES, self.album.painter, self.album.settings, self.album.weights)


def _timed(album: PictureStore, edits: Sequence[PictureRequest], progress: bool) -> Iterator[tuple[int, float]]:
    """The number of each edit once it is there, and how long it took: the mean of what was painted so far; 0 if it was there before."""
    start, painted = time.perf_counter(), 0
    for i, result in album.paint(edits, progress=progress):
        painted += result is not None
        yield i, 0.0 if result is None else (time.perf_counter() - start) / painted


def _turn_suffix(turn: int) -> str:
    """As `EditSession` names the rounds of an edit among ready blueprints."""
    return f".{turn + 1}" if turn else ""


def _file(work: _CaseState) -> Path:
    assert work.file is not None
    return work.file


def _aspect_ratio(case: Case) -> float:
    if case.source is None:
        return 1.0
    with open_regular(case.source) as file:
        width, height = picture_size(file, str(case.source))
    return width / height


def _is_finished(folder: Path, case: Case, row: dict[str, Any] | None) -> bool:
    return row is not None and row.get("prompt") == case.prompt and all(is_complete(folder / name) for name in row["pictures"])
