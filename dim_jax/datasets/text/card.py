"""The files beside the data: counts and the data card."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from dim_jax.data.example import SPLITS
from dim_jax.datasets.layouts.pairs import Pair, Picture
from dim_jax.datasets.text.rules import RULES
from dim_jax.datasets.words import lengths


@dataclass
class Counts:
    """Counts of pictures and pairs while they are written."""

    pictures: Counter = field(default_factory=Counter)
    pairs: Counter = field(default_factory=Counter)
    no_room: Counter = field(default_factory=Counter)
    captions: list[str] = field(default_factory=list)
    instructions: list[str] = field(default_factory=list)
    blueprints: list[str] = field(default_factory=list)

    def add(self, pictures: Sequence[Picture], pairs: Sequence[Pair], split: str) -> None:
        """Count the pictures and pairs of a scene."""
        self.pictures[split] += len(pictures)
        self.captions += [text for picture in pictures for text in picture.captions]
        for pair in pairs:
            self.pairs[pair.rule, split] += 1
            self.instructions += pair.instructions
            self.blueprints.append(pair.blueprint)

    def statistics(self, about: dict) -> dict:
        """Counts by rule and split, and the lengths of texts in words; `about` says how they were made."""
        texts = {"captions": self.captions, "instructions": self.instructions, "blueprints": self.blueprints}
        return about | {
            "pictures": {split: self.pictures[split] for split in SPLITS},
            "pairs": {
                rule: {**{split: self.pairs[rule, split] for split in SPLITS}, "no room": self.no_room[rule]} for rule in RULES
            },
            "total": {split: sum(number for (_, pair_split), number in self.pairs.items() if pair_split == split) for split in SPLITS},
            "words": {name: lengths(group) for name, group in texts.items()},
        }  # fmt: skip


def text(statistics: dict) -> str:
    """The data card, in Markdown."""
    rules = "\n".join(f"| {rule} | {row['train']} | {row['test']} | {row['no room']} |" for rule, row in statistics["pairs"].items())
    words = "\n".join(f"| {name} | {row['mean']} | {row['longest']} |" for name, row in statistics["words"].items())
    side, scenes, total, pictures = (statistics[name] for name in ("side", "scenes", "total", "pictures"))
    held_out, all_words = statistics["vocabulary"]["test"], sum(statistics["vocabulary"].values())
    grounds, all_grounds = statistics["grounds"]["test"], sum(statistics["grounds"].values())
    faces, left_out = ", ".join(statistics["faces"]), ", ".join(statistics["left out"])
    return f"""# Text on pictures: edits of words, typeface, colour, size and place

Pictures of {side} x {side} pixels with one or two texts, and edits of one of them: {total["train"]} pairs to train on and
{total["test"]} to test. They are {pictures["train"]} and {pictures["test"]} pictures of {scenes} scenes.

## How it was made

`dim build-data text` with `--scenes {scenes} --side {side} --seed {statistics["seed"]}`. The same arguments, pictures, fonts and version
of Pillow give the same bytes. A scene is a ground with texts in colours that stand out (contrast 3 : 1 at least); letters on
pictures have a black or white rim. Each rule changes one text of it, where there is room, which makes a pair forwards and one back.

- **Pairs** are equal outside the boxes of the text before and after, pixel by pixel.
- **Instructions** are written by rule, in several wordings; **captions** name texts, their look and the ground.
- **Blueprints** have Draw-In-Mind's five sections, also by rule. They tell more than the instruction does, since this designer
  has seen the target: a score with them is an upper bound.

## Split

By word and by ground, and no pair joins the two. {held_out} of {all_words} words, and numbers by the same hash, are written on pictures
of the test only, in any case, and {grounds} of {all_grounds} grounds are used by them only. Every tenth scene is of the test.

## Counts

| rule | train | test | no room |
|---|---|---|---|
{rules}

| texts, in words | mean | longest |
|---|---|---|
{words}

## Fonts and licences

Letters: {faces}.{f" Left out, without Latin letters of both cases: {left_out}." if left_out else ""}

`plain`, `bold`, `slanted` and `outlined` are drawn with the font that comes with Pillow, Aileron Regular by Sora Sagano, which its
author has put into the public domain (CC0). Other fonts have licences of their own. Most allow pictures of text; some, above
all of commercial fonts, forbid data sets of their letters or training on them, and a model may learn to draw these letters.
Read the licence of each before you train with the data or pass them on. The same holds for pictures of yours that are written on.

## Known limits

Latin letters, short English words, one line for each text, straight and unshaded; templates write all instructions.
"""
