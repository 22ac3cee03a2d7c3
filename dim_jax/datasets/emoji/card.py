"""The files beside the data: counts, a sheet of examples, and the data card."""

from collections import Counter
from collections.abc import Sequence

from PIL import Image

from dim_jax.data.example import SPLITS
from dim_jax.datasets.cards import PairStatistics, words_table
from dim_jax.datasets.emoji.packages import HANDS, NAMES
from dim_jax.datasets.emoji.render import RenderedEmoji
from dim_jax.datasets.emoji.split import sampling_hash
from dim_jax.datasets.layouts.pairs import PAIR_SPLITS, Pair, Picture
from dim_jax.markdown import markdown_table
from dim_jax.sheets import named_rows

PER_RULE = 4  # pairs on the sheet, from different sets where there are


def statistics(pictures: Sequence[Picture], pairs: Sequence[Pair], *, candidates: Counter, dropped: Counter) -> dict:
    """Counts by set, rule and split, and the lengths of texts in words."""
    counts = PairStatistics()
    counts.add(pictures, pairs)
    return {
        "pictures": {name: {split: counts.pictures[name, split] for split in SPLITS} for name in _sets(pictures)},
        "pairs": {
            rule: {"found": number, **{split: counts.pairs[rule, split] for split in PAIR_SPLITS}}
            for rule, number in sorted(candidates.items())
        },
        "total": counts.total(PAIR_SPLITS),
        "dropped": {reason: dropped[reason] for reason in ("equal", "mixed")},
        "words": counts.words(),
    }


def _sets(pictures: Sequence[Picture]) -> list[str]:
    return list(dict.fromkeys(picture.set for picture in pictures))


def contact_sheet(emoji: Sequence[RenderedEmoji], pairs: Sequence[Pair]) -> Image.Image:
    """For every rule some pairs in a row, each with its instruction in another wording."""
    pictures = [Image.fromarray(item.pixels) for item in emoji]
    rows = {}
    for rule in sorted({pair.rule for pair in pairs}):
        examples = _examples(rule, emoji, pairs)
        texts = [pair.instructions[number % len(pair.instructions)] for number, pair in enumerate(examples)]
        rows[rule] = [((pictures[pair.source], pictures[pair.target]), text) for pair, text in zip(examples, texts, strict=True)]
    return named_rows(rows)


def _examples(rule: str, emoji: Sequence[RenderedEmoji], pairs: Sequence[Pair]) -> list[Pair]:
    """Some pairs of a rule, the same ones every time: one of each set as far as there are."""
    group = sorted((pair for pair in pairs if pair.rule == rule), key=lambda pair: sampling_hash(emoji[pair.source], emoji[pair.target]))
    one_per_set = list({emoji[pair.target].set: pair for pair in reversed(group)}.values())
    return (one_per_set + [pair for pair in group if pair not in one_per_set])[:PER_RULE]


def data_card(statistics: dict, side: int, limits: dict[str, int]) -> str:
    """The data card, in Markdown."""
    sources = markdown_table(
        ("set", "style", "by", "licence", "npm package", *SPLITS),
        [
            (name, item.title, item.author, item.licence, f"`{item.name}` {item.version}", *counts.values())
            for name, counts in statistics["pictures"].items()
            for item in [HANDS[name]]
        ],
    )
    owners = [f"{HANDS[name].title}: {HANDS[name].author}, {HANDS[name].licence}." for name in statistics["pictures"]]
    rules = markdown_table(
        ("rule", "found", *PAIR_SPLITS, "limit"),
        [(rule, *counts.values(), limits.get(rule, "")) for rule, counts in statistics["pairs"].items()],
    )
    total, dropped = statistics["total"], statistics["dropped"]
    return f"""# Emoji: pictures, captions, edit pairs and blueprints

The emoji of Unicode as {len(owners)} teams drew them, at {side} x {side} pixels on white, and edits that follow from what emoji are: the
same hand in another skin tone, the same clock at another time, the same thing in another style.
There are {total["train"]} pairs to train on, {total["test"]} to test, and {total["known"]} to test whose targets were trained on.

## Pictures

{sources}

Names and features of emoji are read from `{NAMES.name}` {NAMES.version} (its names are Unicode's CLDR names); none of its drawings is here.

**Attribution.** {" ".join(owners)} Rendered at {side} x {side} pixels here. CC-BY-4.0 is https://creativecommons.org/licenses/by/4.0/.
Keep this text with the pictures.

## How it was made

SVGs are rendered at {side} pixels on white, the 3D pictures (256 pixels) are scaled down with Lanczos. Everything is deterministic.

- **Pairs** join two pictures of one set by a rule, or one emoji in two sets (`style`).
  {dropped["equal"]} pairs of equal pictures are dropped.
- **Captions** name what is shown, the style, and colours measured on the picture.
- **Instructions** are written by rule, in several wordings each.
- **Blueprints** have Draw-In-Mind's five sections. They too are written by rule; positions, colours and sizes are measured on *both*
  pictures. So they tell more than the instruction does: this designer has seen the target. A score with them is an upper bound.

## Split

By emoji, never by pair: an emoji in all its skin tones and in all sets is in one split, by a hash of its code points, so that it stays
there when packages change. A test asks for combinations that were not trained on: the woman of an occupation whose man may have been, a
heart in a colour that squares had. Two states of one thing, an animal and its face, both directions of a hand or a walker are held out
together; of plain people, single skin tones. Where a rule joins emoji (genders, occupations, colours, clocks), more are held out, since a
test pair needs two.
A pair is in a split when both of its pictures are. Where only the source is held out, the pair is one of the *known*: an unseen picture,
edited to something that may have been seen. {dropped["mixed"]} pairs the other way round are dropped.
No picture of the test is in any training pair.

## Counts

Rules with a limit keep a seeded sample of so many in training and a tenth of that in each of the others.

{rules}

{words_table(statistics["words"])}

## Known limits

Texts are made by templates: short, regular English. Sets draw some emoji unlike the others, and an edit by name may redraw more than it
says (a man and a woman of one occupation differ in their clothes, too). White things are drawn on white. Plain people of light skin tone
are all in the test, so changing hair and taking up an occupation are trained on the other skin tones.
"""
