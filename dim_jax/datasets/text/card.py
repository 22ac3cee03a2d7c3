"""The data card of the text data set."""

from dim_jax.datasets.cards import words_table
from dim_jax.markdown import markdown_table


def data_card(statistics: dict) -> str:
    """The data card, in Markdown."""
    rules = markdown_table(("rule", "train", "test", "no room"), [(rule, *row.values()) for rule, row in statistics["pairs"].items()])
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

{rules}

{words_table(statistics["words"])}

## Fonts and licences

Letters: {faces}.{f" Left out, without Latin letters of both cases: {left_out}." if left_out else ""}

`plain`, `bold`, `slanted` and `outlined` are drawn with the font that comes with Pillow, Aileron Regular by Sora Sagano, which its
author has put into the public domain (CC0). Other fonts have licences of their own. Most allow pictures of text; some, above
all of commercial fonts, forbid data sets of their letters or training on them, and a model may learn to draw these letters.
Read the licence of each before you train with the data or pass them on. The same holds for pictures of yours that are written on.

## Known limits

Latin letters, short English words, one line for each text, straight and unshaded; templates write all instructions.
"""
