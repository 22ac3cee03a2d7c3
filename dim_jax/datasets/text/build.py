"""The text data set, from words and backgrounds to a folder: sample scenes, change them, draw, write, describe."""

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
from dim_jax.data.workers import cancelling
from dim_jax.datasets.cards import PairStatistics, write_card
from dim_jax.datasets.layouts.pairs import DATASET, Pair, Picture, encode_webp, write_pairs
from dim_jax.datasets.text import backgrounds
from dim_jax.datasets.text import faces as fonts
from dim_jax.datasets.text.backgrounds import Background
from dim_jax.datasets.text.blueprint import blueprint
from dim_jax.datasets.text.card import data_card
from dim_jax.datasets.text.faces import Face
from dim_jax.datasets.text.rules import RULES, Change, Choices, change
from dim_jax.datasets.text.scenes import Scene, render_scene, sample_scene
from dim_jax.datasets.text.vocabulary import WORDS, split_of
from dim_jax.datasets.text.wording import captions, instructions
from dim_jax.errors import InputError
from dim_jax.sheets import Captioned, named_rows
from dim_jax.storage.folders import new_folder
from dim_jax.storage.paths import AnyPath

TEST_EVERY = 10  # every so many scenes one is of the test
SMALLEST, LARGEST = 64, 2048
SET = "text"  # of the pictures
SHEET_EXAMPLES, THUMB = 4, 96  # examples of a rule on the sheet, and their side
BYTES = (0.2, 1.5)  # on disk for each pixel: on patterns, on pictures


@dataclass(frozen=True)
class SceneBuilder:
    """Makes the scene of a number."""

    backgrounds: dict[Split, list[Background]]
    faces: Sequence[Face]
    side: int
    seed: int

    def __call__(self, number: int) -> "BuiltScene":
        split: Split = "test" if number % TEST_EVERY == TEST_EVERY - 1 else "train"
        rng = Random(f"{self.seed}/{number}")
        scene = sample_scene(rng, split, self.backgrounds[split], self.faces, self.side)
        choices = Choices(split, self.faces, scene.background.readable)
        candidates = [change(rule, rng, scene, choices, self.side) for rule in RULES]
        changes = [applied for applied in candidates if applied is not None]
        background_image = scene.background.paint(self.side)
        background_text = scene.background.describe(background_image)
        scenes = {"base": scene} | {applied.rule: applied.target for applied in changes}
        images = [render_scene(applied, background_image) for applied in scenes.values()]
        pictures = [_picture(number, name, scenes[name], split, background_text, image) for name, image in zip(scenes, images, strict=True)]
        pairs = list[Pair]()
        for index, applied in enumerate(changes, 1):
            pairs += [self._pair(applied, 0, index, background_text), self._pair(applied.reversed(), index, 0, background_text)]
        return BuiltScene(pictures, pairs, images, [rule for rule in RULES if rule not in scenes])

    def _pair(self, applied: Change, source: int, target: int, background_text: str) -> Pair:
        texts = instructions(applied)
        return Pair(source, target, applied.rule, texts, blueprint(applied, texts[0], background_text, self.side))


@dataclass(frozen=True)
class BuiltScene:
    """A scene's pictures, the pairs between them by their numbers in it, and the rules that found no room."""

    pictures: list[Picture]
    pairs: list[Pair]
    images: list[Image.Image]
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
    """Make the data set folder, complete or not at all; the same arguments give the same bytes.

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
    if scenes < TEST_EVERY or not SMALLEST <= side <= LARGEST:
        raise InputError(f"{scenes} scenes of {side} pixels: give at least {TEST_EVERY} scenes, and a side from {SMALLEST} to {LARGEST}.")
    user_faces, left_out = ([], []) if font_folder is None else fonts.read_faces(font_folder)
    all_backgrounds = backgrounds.pattern_backgrounds() if pictures is None else backgrounds.read_backgrounds(pictures)
    builder = SceneBuilder(
        {split: backgrounds.select_split(all_backgrounds, split) for split in SPLITS}, (*fonts.BUILTIN_FACES, *user_faces), side, seed
    )
    counts, no_room = PairStatistics(), Counter[str]()
    pairs, examples = list[Pair](), dict[str, list[Captioned]]()
    needs = round(scenes * (1 + len(RULES)) * side**2 * BYTES[pictures is not None])
    with (
        new_folder(target, overwrite=overwrite, num_bytes=needs, kind=DATASET) as folder,
        cancelling(ThreadPoolExecutor(os.cpu_count())) as threads,
        Progress(console=console, disable=console is None or not console.is_terminal, transient=True) as bar,
    ):
        built = bar.track(threads.map(builder, range(scenes)), total=scenes, description="drawing scenes")
        write_pairs(folder, _collect(built, counts, no_room, pairs, examples), pairs)
        statistics = {
            "scenes": scenes, "side": side, "seed": seed, "faces": [face.name for face in builder.faces], "left out": left_out,
            "vocabulary": dict(Counter(map(split_of, dict.fromkeys(WORDS)))),
            "grounds": {split: len(builder.backgrounds[split]) for split in SPLITS},
            "pictures": {split: counts.pictures[SET, split] for split in SPLITS},
            "pairs": {rule: {**{split: counts.pairs[rule, split] for split in SPLITS}, "no room": no_room[rule]} for rule in RULES},
            "total": counts.total(SPLITS),
            "words": counts.words(),
        }  # fmt: skip
        write_card(folder, statistics, named_rows(examples), data_card(statistics))
    return statistics


def _collect(
    scenes: Iterable[BuiltScene], counts: PairStatistics, no_room: Counter[str], pairs: list[Pair], examples: dict[str, list[Captioned]]
) -> Iterator[Picture]:
    """The pictures in order; fills the other arguments on the way."""
    offset = 0
    for scene in scenes:
        yield from scene.pictures
        pairs += [Pair(offset + pair.source, offset + pair.target, pair.rule, pair.instructions, pair.blueprint) for pair in scene.pairs]
        counts.add(scene.pictures, scene.pairs)
        no_room.update(scene.no_room)
        for pair in scene.pairs:
            if len(row := examples.setdefault(pair.rule, [])) < SHEET_EXAMPLES and pair.source == 0:
                source, target = (scene.images[i].resize((THUMB, THUMB), Image.Resampling.LANCZOS) for i in (0, pair.target))
                row.append(((source, target), pair.instructions[len(row) % len(pair.instructions)]))
        offset += len(scene.pictures)


def _picture(number: int, name: str, scene: Scene, split: Split, background_text: str, image: Image.Image) -> Picture:
    words = " / ".join(label.text for label in scene.labels)
    return Picture(SET, f"{number:06d}-{name}", words, split, captions(scene, background_text), encode_webp(np.asarray(image)))
