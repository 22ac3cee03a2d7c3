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
from dim_jax.evals.designs import Designs, parse
from dim_jax.evals.metrics import mse, unit_pixels
from dim_jax.evals.pictures import LATENTS, Album, Edit, is_whole, link
from dim_jax.processing.pictures import open_picture, picture_size
from dim_jax.sampling import Source
from dim_jax.storage.folders import make_folder
from dim_jax.storage.paths import open_regular

CHUNK = 256  # cases whose sources are in memory at once
PICTURES = "pictures"


def seed_of(case: Case, seed: int, source: Image.Image | None) -> int:
    """The noise of a case follows from the case and the seed of the run, not from what else is painted."""
    own = zlib.crc32(f"{seed} {case.id}".encode())
    return (own if source is None else zlib.crc32(source.tobytes(), own)) >> 1


@dataclass
class _Work:
    """A case that is being painted: what its next turn edits (`file` is that picture), and what has come of it."""

    case: Case
    source: Image.Image | Source | None
    file: Path | None
    seed: int
    left: int  # pictures
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
        designs: who writes blueprints; None where only the direct track is painted.
        seed: of the noise.
        rounds: of the reflected track, at most.
        tag: the end of this shard's files, such as ".2of4".
        progress: show bars.
    """

    benchmark: Benchmark
    out: Path
    album: Album
    designs: Designs | None = None
    seed: int = 0
    rounds: int = 3
    tag: str = ""
    progress: bool = False

    def paint(self, track: Track, cases: Sequence[Case]) -> dict[str, str]:
        """Paint what is not finished. Returns the cases that could not be, by id, and why: the designer wrote no blueprint.

        Raises:
            InputError: a source cannot be read, another run paints the same, a limit on the designer was reached, or as in `Album.paint`.
        """
        folder = self.out / track
        make_folder(folder)
        failed: dict[str, str] = {}
        with closing(JsonlLog.locked(folder / f"cases{self.tag}.jsonl", wait=False)) as lines:
            for _ in lines.read():  # cuts off what a kill has torn
                pass
            finished = read_finished(folder)
            left = [case for case in cases if not _is_finished(folder, case, finished.get(case.id))]
            left.sort(key=_aspect_ratio)  # so that pictures of one size fill a batch
            for start in range(0, len(left), CHUNK):
                failed |= self._chunk(track, left[start : start + CHUNK], lines)
        return failed

    def _chunk(self, track: Track, cases: Sequence[Case], lines: JsonlLog) -> dict[str, str]:
        works, failed = [self._begin(case) for case in cases], dict[str, str]()
        for turn in range(max(len(work.turns) for work in works)):
            works = [work for work in works if turn < len(work.turns)]
            asked = {work.case.id: work.turns[turn] for work in works}
            if track != "direct":
                asked, reasons = self._blueprints(track, works, asked, turn, 1)
                failed |= reasons
                works = [work for work in works if work.case.id in asked]
            if track == "reflected":
                self._reflected(works, asked, turn)
                done = works
            else:
                done = self._painted(track, works, asked, turn)
            for work in done:
                if not work.left:
                    self._finish(track, work, lines)
        return failed

    def _begin(self, case: Case) -> _Work:
        picture = None if case.source is None else open_picture(case.source)
        left = self.benchmark.pictures_per_case * len(case.turns or (1,))
        return _Work(case, picture, case.source, seed_of(case, self.seed, picture), left)

    def _edit(self, work: _Work, text: str, name: str, noise: Sequence[str], turn: int, same_as: Path | None = None) -> Edit:
        instruction = work.turns[turn]
        designer = self.designs.name if self.designs and text != instruction else "none"
        further = turn + 1 < len(work.turns)
        told = "" if text == instruction else instruction
        return Edit(name, text, work.source, work.noise(*noise), designer, told, same_as, keep_latents=further)

    def _painted(self, track: Track, works: Sequence[_Work], texts: dict[str, str], turn: int) -> Iterator[_Work]:
        """Paint one turn of the cases; gives each when its last picture is there."""
        album, several = self._album(track), self.benchmark.pictures_per_case > 1
        edits, owners = [], []
        for work in works:
            for k in range(self.benchmark.pictures_per_case):
                noise = (*([f"turn {turn + 1}"] if turn else []), *([f"picture {k}"] if k else []))
                name = work.name(turn, k if several else None)
                edits.append(self._edit(work, texts[work.case.id], name, noise, turn))
                owners.append(work)
            work.texts.append(texts[work.case.id])
        left = {id(work): self.benchmark.pictures_per_case for work in works}
        for i, seconds in _timed(album, edits, self.progress):
            work = owners[i]
            work.seconds, work.left, left[id(work)] = work.seconds + seconds, work.left - 1, left[id(work)] - 1
            if not left[id(work)]:
                own = [edit for edit, owner in zip(edits, owners, strict=True) if owner is work] if several else [edits[i]]
                work.pictures += [f"{PICTURES}/{edit.name}.png" for edit in own]
                if own[-1].keep_latents:
                    work.source, work.file = album.source(own[-1]), album.file(own[-1])
                yield work

    def _reflected(self, works: Sequence[_Work], texts: dict[str, str], turn: int) -> None:
        """Paint one turn of the cases in rounds."""
        assert self.designs is not None
        album, first, folder = self._album("reflected"), self._album("designed"), self.out / "reflected"
        open_, edits, asked = list(works), dict[str, list[Edit]](), {work.case.id: work.turns[turn] for work in works}
        for attempt in range(1, self.rounds + 1):
            noise = (*([f"turn {turn + 1}"] if turn else []), *([f"round {attempt}"] if attempt > 1 else []))
            now = []
            for work in open_:
                same = first.folder / f"{work.name(turn)}.png" if attempt == 1 else None
                now.append(self._edit(work, texts[work.case.id], work.name(turn, attempt=attempt), noise, turn, same))
                edits.setdefault(work.case.id, []).append(now[-1])
            for i, seconds in _timed(album, now, self.progress):
                open_[i].seconds += seconds
            jobs = [
                Job((_file(work), album.file(edit)), work.turns[turn], {"id": f"{work.case.id}{_tail(turn)}.r{attempt}"})
                for work, edit in zip(open_, now, strict=True)
            ]
            answers = self.designs.reflections(folder, jobs)
            going, following = [], dict[str, str]()
            for work, edit, job in zip(open_, now, jobs, strict=True):
                text = answers.texts.get(job.row["id"])
                row: dict[str, Any] = {"turn": turn + 1, "picture": f"{PICTURES}/{edit.name}.png"}
                row |= {"instruction": asked[work.case.id], "painted_prompt": edit.prompt}
                if text is None:
                    row["failed"] = answers.reasons.get(job.row["id"], "not asked")
                else:
                    reflection = parse(text)
                    row |= {"done": reflection.done, "score": reflection.score, "reason": reflection.reason}
                    if not reflection.done and attempt < self.rounds:
                        going.append(work)
                        following[work.case.id] = reflection.instruction
                work.rounds.append(row)
            if not going:
                break
            texts, reasons = self._blueprints("reflected", going, following, turn, attempt + 1)
            for work in going:
                if work.case.id in reasons:
                    work.rounds[-1]["failed"] = f"no blueprint for the next round: {reasons[work.case.id]}"
            open_, asked = [work for work in going if work.case.id in texts], following
        for work in works:
            self._choose(album, work, edits[work.case.id], turn)

    def _choose(self, album: Album, work: _Work, edits: Sequence[Edit], turn: int) -> None:
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
        work.left -= 1
        if edits[best].keep_latents:
            work.source, work.file = album.source(edits[best]), album.folder / f"{name}.png"

    def _blueprints(
        self, track: Track, works: Sequence[_Work], asked: dict[str, str], turn: int, attempt: int
    ) -> tuple[dict[str, str], dict[str, str]]:
        """By case what the painter reads; and of those without, why."""
        if self.designs is None:
            raise InputError(f"The track {track} needs a designer that writes blueprints. Give one (--designer).")
        end = "" if attempt == 1 else f".r{attempt}"
        ids = {work.case.id: f"{work.case.id}{_tail(turn)}{end}" for work in works}
        jobs = [Job(() if work.file is None else (work.file,), asked[work.case.id], {"id": ids[work.case.id]}) for work in works]
        # The first round is the designed one, which may have been asked for; and the other way round.
        others = [self.out / other for other in ("designed", "reflected") if other != track]
        found = self.designs.blueprints(self.out / track, jobs, others)
        texts = {case: found.texts[name] for case, name in ids.items() if name in found.texts}
        return texts, {case: found.reasons.get(name, "not asked") for case, name in ids.items() if case not in texts}

    def _finish(self, track: Track, work: _Work, lines: JsonlLog) -> None:
        row: dict[str, Any] = {
            "id": work.case.id, "category": work.case.category, "prompt": work.case.prompt,
            "painted_prompt": "\n\n".join(work.texts), "pictures": work.pictures, "seconds": round(work.seconds, 3),
        }  # fmt: skip
        if track == "reflected":
            row["rounds"] = work.rounds
        lines.append(row)
        folder = self._album(track).folder
        for text in work.pictures[:-1]:
            for left in folder.glob(f"{Path(text).relative_to(PICTURES).with_suffix('')}*{LATENTS}"):
                left.unlink()

    def _album(self, track: Track) -> Album:
        return Album(self.out / track / PICTURES, self.album.painter, self.album.settings, self.album.weights)


def _timed(album: Album, edits: Sequence[Edit], progress: bool) -> Iterator[tuple[int, float]]:
    """The number of each edit once it is there, and how long it took: the mean of what was painted so far; 0 if it was there before."""
    start, painted = time.perf_counter(), 0
    for i, result in album.paint(edits, progress=progress):
        painted += result is not None
        yield i, 0.0 if result is None else (time.perf_counter() - start) / painted


def _tail(turn: int) -> str:
    """As `EditSession` names the rounds of an edit among ready blueprints."""
    return f".{turn + 1}" if turn else ""


def _file(work: _Work) -> Path:
    assert work.file is not None
    return work.file


def _aspect_ratio(case: Case) -> float:
    if case.source is None:
        return 1.0
    with open_regular(case.source) as file:
        width, height = picture_size(file, str(case.source))
    return width / height


def _is_finished(folder: Path, case: Case, row: dict[str, Any] | None) -> bool:
    return row is not None and row.get("prompt") == case.prompt and all(is_whole(folder / name) for name in row["pictures"])
