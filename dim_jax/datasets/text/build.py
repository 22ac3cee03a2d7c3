"""The text data set, from words and grounds to a folder: invent scenes, change them, draw, write, describe."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from dim_jax.data.example import SPLITS, Split
from dim_jax.data.records import check_installed
from dim_jax.datasets.layouts.pairs import DATASET, Pair, Picture, webp, write_pairs
from dim_jax.datasets.text import faces as fonts
from dim_jax.datasets.text import grounds as behind
from dim_jax.datasets.text.blueprint import blueprint
from dim_jax.datasets.text.card import Counts, text
from dim_jax.datasets.text.faces import Face
from dim_jax.datasets.text.grounds import Ground
from dim_jax.datasets.text.rules import RULES, Change, Stock, change
from dim_jax.datasets.text.scenes import Scene, invent, paint
from dim_jax.datasets.text.vocabulary import WORDS, split_of
from dim_jax.datasets.text.wording import captions, instructions
from dim_jax.errors import InputError
from dim_jax.sheets import Captioned, named_rows
from dim_jax.storage.folders import new_folder
from dim_jax.storage.paths import AnyPath

TEST = 10  # every so many scenes one is of the test
SMALLEST, LARGEST = 64, 2048
SHOWN, THUMB = 4, 96  # examples of a rule on the sheet, and their side
BYTES = (0.2, 1.5)  # on disk for each pixel: on patterns, on pictures


@dataclass(frozen=True)
class Maker:
    """Makes the scene of a number."""

    grounds: dict[Split, list[Ground]]
    faces: Sequence[Face]
    side: int
    seed: int

    def split(self, number: int) -> Split:
        return "test" if number % TEST == TEST - 1 else "train"

    def __call__(self, number: int) -> "Made":
        split, rng = self.split(number), Random(f"{self.seed}/{number}")
        scene = invent(rng, split, self.grounds[split], self.faces, self.side)
        stock = Stock(split, self.faces, scene.ground.readable)
        found = [change(rule, rng, scene, stock, self.side) for rule in RULES]
        changes = [one for one in found if one is not None]
        ground = scene.ground.paint(self.side)
        told = scene.ground.described(ground)
        scenes = {"base": scene} | {one.rule: one.target for one in changes}
        drawn = [paint(one, ground) for one in scenes.values()]
        pictures = [_picture(number, name, scenes[name], split, told, image) for name, image in zip(scenes, drawn, strict=True)]
        pairs = list[Pair]()
        for place, one in enumerate(changes, 1):
            pairs += [self._pair(one, 0, place, told), self._pair(one.back(), place, 0, told)]
        return Made(pictures, pairs, drawn, [rule for rule in RULES if rule not in scenes])

    def _pair(self, one: Change, source: int, target: int, told: str) -> Pair:
        texts = instructions(one)
        return Pair(source, target, one.rule, texts, blueprint(one, texts[0], told, self.side))


@dataclass(frozen=True)
class Made:
    """A scene's pictures, the pairs between them by their numbers in it, and the rules that found no room."""

    pictures: list[Picture]
    pairs: list[Pair]
    drawn: list[Image.Image]
    no_room: list[str]


def build(
    target: AnyPath,
    *,
    scenes: int = 2000,
    side: int = 256,
    pictures: Path | None = None,
    font_folder: Path | None = None,
    seed: int = 0,
    overwrite: bool = False,
    console: Console | None = None,
) -> dict:
    """Make the data set folder, whole or not at all; the same arguments give the same bytes.

    Args:
        target: the folder to make (`datasets/layouts/pairs.py` says what is in it), with statistics.json, sheet.png and README.md.
        scenes: up to six pictures and ten pairs each.
        side: of the pictures, in pixels; training scales them as it needs.
        pictures: a folder with pictures to write on, instead of plain colours and patterns.
        font_folder: fonts beside Pillow's own.
        seed: of the scenes; the split does not depend on it.
        overwrite: replace a data set that is already there.
        console: where a bar is shown, if it is a terminal; None shows none.

    Returns:
        What statistics.json holds.

    Raises:
        InputError: the target exists, a number is out of range, a folder, picture or font cannot be used, or a package is missing.
    """
    check_installed()
    fonts.check_installed()
    if scenes < TEST or not SMALLEST <= side <= LARGEST:
        raise InputError(f"{scenes} scenes of {side} pixels: give at least {TEST} scenes, and a side from {SMALLEST} to {LARGEST}.")
    found, left_out = ([], []) if font_folder is None else fonts.read_faces(font_folder)
    grounds = behind.patterns() if pictures is None else behind.read_pictures(pictures)
    maker = Maker({split: behind.of_split(grounds, split) for split in SPLITS}, (*fonts.OWN, *found), side, seed)
    counts, pairs, shown = Counts(), list[Pair](), dict[str, list[Captioned]]()
    needs = round(scenes * (1 + len(RULES)) * side**2 * BYTES[pictures is not None])
    with (
        new_folder(target, overwrite=overwrite, needs=needs, kind=DATASET) as folder,
        ThreadPoolExecutor(os.cpu_count()) as threads,
        Progress(console=console, disable=console is None or not console.is_terminal, transient=True) as bar,
    ):
        made = bar.track(threads.map(maker, range(scenes)), total=scenes, description="drawing scenes")
        write_pairs(folder, _written(made, maker, counts, pairs, shown), pairs)
        statistics = counts.statistics(
            {
                "scenes": scenes, "side": side, "seed": seed, "faces": [face.name for face in maker.faces], "left out": left_out,
                "vocabulary": dict(Counter(map(split_of, dict.fromkeys(WORDS)))),
                "grounds": {split: len(maker.grounds[split]) for split in SPLITS},
            }
        )  # fmt: skip
        (folder / "statistics.json").write_text(json.dumps(statistics, indent=1) + "\n")
        named_rows(shown).save(folder / "sheet.png")
        (folder / "README.md").write_text(text(statistics))
    return statistics


def _written(
    made: Iterable[Made], maker: Maker, counts: Counts, pairs: list[Pair], shown: dict[str, list[Captioned]]
) -> Iterator[Picture]:  # fmt: skip
    """The pictures in order; fills `pairs`, `counts` and `shown` on the way."""
    first = 0
    for number, one in enumerate(made):
        yield from one.pictures
        pairs += [Pair(first + pair.source, first + pair.target, pair.rule, pair.instructions, pair.blueprint) for pair in one.pairs]
        counts.add(one.pictures, one.pairs, maker.split(number))
        counts.no_room.update(one.no_room)
        for pair in one.pairs:
            if len(row := shown.setdefault(pair.rule, [])) < SHOWN and pair.source == 0:
                source, target = (one.drawn[i].resize((THUMB, THUMB), Image.Resampling.LANCZOS) for i in (0, pair.target))
                row.append(((source, target), pair.instructions[len(row) % len(pair.instructions)]))
        first += len(one.pictures)


def _picture(number: int, name: str, scene: Scene, split: Split, told: str, image: Image.Image) -> Picture:
    words = " / ".join(label.text for label in scene.labels)
    return Picture("text", f"{number:06d}-{name}", words, split, captions(scene, told), webp(np.asarray(image)))
