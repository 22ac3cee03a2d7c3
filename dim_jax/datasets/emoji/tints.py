"""Emoji in colours that nobody drew them in: edits by a colour's name, and edits that keep a colour, among things of any shape.

From the emoji alone a model learns which hearts, circles, squares and books there are, and paints those whatever colour is asked for.
"""

import colorsys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import permutations

import numpy as np
from jaxtyping import Float, UInt8

from dim_jax.data.example import SPLITS, Split
from dim_jax.datasets.cards import contact_sheet, counts_by_split, write_card
from dim_jax.datasets.emoji import tables
from dim_jax.datasets.emoji.packages import SETS
from dim_jax.datasets.emoji.wording import INSTRUCTIONS, with_article
from dim_jax.datasets.hashing import stable_hash
from dim_jax.datasets.layouts.pairs import DATASET, Pair, Picture, decode_webp, encode_webp, read_pairs, read_pictures, write_pairs
from dim_jax.datasets.measures import PALETTE, foreground_mask, main_colours
from dim_jax.datasets.words import capitalize_first, join_with_and
from dim_jax.designer.sections import format_sections
from dim_jax.errors import check
from dim_jax.markdown import markdown_table
from dim_jax.storage.folders import new_folder
from dim_jax.storage.paths import AnyPath

Colour = Float[np.ndarray, "3"]  # RGB in [0, 255]
Pixels = UInt8[np.ndarray, "h w 3"]

SEED = 7
SHADES = 5  # colours that a thing is given
THINGS: Mapping[Split, int] = {"train": 600, "test": 60}
# So many edits of the training are there in another colour: of shapes most, since little else tells that a shape keeps its colour.
RECOLOURED_PAIRS = {"shape": 1500} | dict.fromkeys(("arrow", "clock", "keycap", "zodiac", "facing", "state"), 250)
MIN_COLOUR_DISTANCE = 36  # levels, at least, in one channel between such a colour and all that have a name here
SHADING = 0.7  # of light and dark that a tinted drawing keeps
WHITE_MARGIN = 0.15  # white up to here in its darkest channel is ground, or shows through
NEEDS = 60 * 2**20  # bytes on disk
COLOUR_OF = {code: word for colours in tables.COLOURS.values() for code, word in colours.items()}
COLOUR_WORDS = set(COLOUR_OF.values())


def build(source: AnyPath, target: AnyPath, *, overwrite: bool = False) -> dict:
    """Make a data set folder of tinted pictures, complete or not at all; the same source gives the same bytes.

    A thing is of the split that it has in `source`. Hearts, circles, squares and books are not tinted with the colours that they come
    in, so no picture of the test comes back.

    Args:
        source: the folder that `dim build-data emoji` made.
        target: the folder to make.
        overwrite: replace a data set that is already there.

    Returns:
        Pairs of each split and rule, as statistics.json holds them.

    Raises:
        InputError: the target exists, or the source is not a data set of emoji.
    """
    tints = Tints(read_pictures(source))
    tints.recolour_things()
    tints.recolour_pairs(read_pairs(source, "train"))
    statistics = counts_by_split(tints.pictures, tints.pairs)
    with new_folder(target, overwrite=overwrite, num_bytes=NEEDS, kind=DATASET) as folder:
        write_pairs(folder, tints.pictures, tints.pairs)
        write_card(folder, statistics, contact_sheet(tints.pictures, tints.pairs, SEED), _data_card(statistics, source.name))
    return statistics


def tint(pixels: Pixels, colour: Colour) -> Pixels:
    """A drawing in one colour: its lights and darks stay lights and darks around it, and white stays white."""
    levels = pixels / 255
    cover = np.clip((1 - levels.min(-1, keepdims=True)) / WHITE_MARGIN, 0, 1)
    light = levels @ np.array([0.299, 0.587, 0.114])  # luma, ITU-R BT.601
    shades = np.clip(colour / 255 * (1 + SHADING * (light - np.median(light[foreground_mask(pixels)])))[..., None], 0, 1)
    return np.rint(255 * (cover * shades + 1 - cover)).astype(np.uint8)


class Tints:
    """The data set while it is made."""

    def __init__(self, pictures: Sequence[Picture]):
        self.pictures, self.pairs = list[Picture](), list[Pair]()
        self._sources, self._palettes = pictures, _palettes(pictures)

    def recolour_things(self) -> None:
        """Edits by a colour's name among things that have none, by the colours that their set gives hearts, circles, squares and books."""
        for split, count in THINGS.items():
            things = [item for item in self._sources if item.split == split and _is_thing(item) and len(self._palettes[item.set]) >= SHADES]
            for thing in sorted(things, key=lambda item: stable_hash(SEED, item.key))[:count]:
                self._recolour(thing)

    def _recolour(self, thing: Picture) -> None:
        palette, pixels = self._palettes[thing.set], _pixels(thing)
        words = sorted(palette, key=lambda word: stable_hash(SEED, f"{thing.key}/{word}"))[:SHADES]
        indices = {word: self._add(thing, word, f"{word} {thing.name}", tint(pixels, palette[word])) for word in words}
        itself, main_colour = self._add(thing, "itself", thing.name, pixels), main_colours(pixels)[0]
        edits = [(old, new, indices[old]) for old, new in permutations(words, 2)]
        edits += [(main_colour, new, itself) for new in words if new != main_colour]
        for old, new, source in edits:
            texts = tuple(text.format(thing=thing.name, old=old, new=new) for text in INSTRUCTIONS["colour"])
            change = "Change the colour of the surface, everywhere. Keep shape, size and shading."
            self._pair(source, indices[new], "tint", texts, change)

    def recolour_pairs(self, pairs: Sequence[Pair]) -> None:
        """Some edits of the training (`RECOLOURED_PAIRS`) with both pictures in one colour, which is far from all that have a name here."""
        shades = [np.array(shade, float) for word in COLOUR_WORDS & PALETTE.keys() for shade in PALETTE[word]]
        shades += [colour for palette in self._palettes.values() for colour in palette.values()]
        by_rule: dict[str, list[tuple[Pair, tuple[str, ...]]]] = defaultdict(list)
        for pair in pairs:
            if texts := tuple(text for text in pair.instructions if not COLOUR_WORDS & set(text.rstrip(".").split())):
                by_rule[pair.rule].append((pair, texts))
        for rule, count in RECOLOURED_PAIRS.items():
            for number in range(count if by_rule[rule] else 0):
                rng = np.random.default_rng(stable_hash(SEED, f"{rule}/{number}"))
                (pair, texts), colour = by_rule[rule][rng.integers(len(by_rule[rule]))], _sample_unnamed_colour(shades, rng)
                source, target = (
                    self._add(picture, f"{rule}-{number}", picture.name, tint(_pixels(picture), colour))
                    for picture in (self._sources[pair.source], self._sources[pair.target])
                )
                self._pair(source, target, rule, texts, "Change what the instruction names, and keep the colour.")

    def _add(self, picture: Picture, suffix: str, name: str, pixels: Pixels) -> int:
        colours = join_with_and(main_colours(pixels))
        captions = (f"{capitalize_first(with_article(name))} in {colours}, {SETS[picture.set].title} emoji style.",)
        code = f"{picture.code}-{suffix.replace(' ', '-')}"
        self.pictures.append(Picture(picture.set, code, name, picture.split, captions, encode_webp(pixels)))
        return len(self.pictures) - 1

    def _pair(self, source: int, target: int, rule: str, texts: tuple[str, ...], change: str) -> None:
        before, after = (self.pictures[index].captions[0] for index in (source, target))
        blueprint = format_sections((texts[0], "One emoji on plain white.", before, change, after))
        self.pairs.append(Pair(source, target, rule, texts, blueprint))


def _palettes(pictures: Sequence[Picture]) -> Mapping[str, dict[str, Colour]]:
    """Set -> word -> the colour of the things of the training that have it, the mean over them."""
    colours: dict[str, dict[str, list[Colour]]] = defaultdict(lambda: defaultdict(list))
    for picture in pictures:
        if picture.split == "train" and picture.code in COLOUR_OF:
            pixels = _pixels(picture)
            if foreground_mask(pixels).any():
                colours[picture.set][COLOUR_OF[picture.code]].append(np.median(pixels[foreground_mask(pixels)], axis=0))
    check(colours, "None of the pictures is a heart, circle, square or book. Give a folder that `dim build-data emoji` made.")
    return defaultdict(dict, {name: {word: np.mean(shades, axis=0) for word, shades in words.items()} for name, words in colours.items()})


def _is_thing(picture: Picture) -> bool:
    """One code point (no skin tone, no gender, no flag), a short name, and no colour of its own."""
    words = picture.name.split()
    plain = "-" not in picture.code and picture.code not in COLOUR_OF and len(words) <= 3 and not COLOUR_WORDS & set(words)
    return plain and bool(foreground_mask(_pixels(picture)).any())


def _pixels(picture: Picture) -> Pixels:
    return np.asarray(decode_webp(picture.webp))


def _sample_unnamed_colour(shades: Sequence[Colour], rng: np.random.Generator) -> Colour:
    while True:
        hue, saturation, value = rng.random(), *rng.uniform(0.35, 0.95, 2)
        colour = 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, value))
        if min(abs(colour - shade).max() for shade in shades) > MIN_COLOUR_DISTANCE:
            return colour


def _data_card(statistics: Mapping[str, Mapping], source: str) -> str:
    train, test = (statistics["pairs"][split] for split in SPLITS)
    rules = markdown_table(("rule", *SPLITS), [(rule, train[rule], test[rule]) for rule in sorted(train)])
    return f"""# Emoji in other colours: edit pairs for training

Made by rule from the pictures of the data set {source}, whose README says who drew them and under which licences; keep it with these.
No team drew these colours.

- `tint`: a thing in one colour and in another one that the instruction names. The colours are those that its set gives hearts, circles,
  squares and books; those are not among the things. Things of the test are those that are held out there.
- The other rules: pairs of the training there, both pictures in one colour, which is far from every colour that has a name.

{rules}
"""
