"""Icons of what some emoji show: flags, keys, signs, arrows, moons, clocks, hands, faces, states and things as others draw them.

Of such things the emoji alone show a model a part, and nothing tells it what a flag looks like that is held out. Icons do: they are no
emoji, but of the same things. With them an edit to an emoji that is held out asks for a known thing in the hand of its set.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dim_jax.data.example import SPLITS, Split
from dim_jax.datasets.cards import contact_sheet, counts_by_split, write_card
from dim_jax.datasets.emoji.blueprint import blueprint
from dim_jax.datasets.emoji.icon_names import FACE_RULES, Icon, icons
from dim_jax.datasets.emoji.names import Emoji, read_emoji
from dim_jax.datasets.emoji.packages import DIALS, HANDS, ICONS, Drawing, DrawingSet, Icons, open_archives, packages_of, read_names
from dim_jax.datasets.emoji.render import SIDE, RenderedEmoji, render
from dim_jax.datasets.emoji.rules import Edit, edits
from dim_jax.datasets.emoji.wording import captions, instructions
from dim_jax.datasets.hashing import stable_hash
from dim_jax.datasets.layouts.pairs import DATASET, Pair, Picture, encode_webp, pair_split, write_pairs
from dim_jax.datasets.measures import main_colours
from dim_jax.errors import require_packages
from dim_jax.markdown import markdown_table
from dim_jax.storage.folders import new_folder
from dim_jax.storage.paths import AnyPath

SEED = 11
HELD_OUT = 0.05  # of the pictures: the split of a picture says nothing about other pictures of the same thing
FLAG_PAIRS = 2000  # of a set
NEEDS = 60 * 2**20  # bytes on disk
NIGHT = "#46505f"  # of the dark part of moons, of eyes and mouths, and of the hands of clocks
RADII = {  # of what lies behind a glyph of 100 a side: as full moons, and a little less than faces
    "moon": {"material": 41.7, "weather": 37.5},
    "face": {"awesome": 49.0, "bootstrap": 49.0, "material": 41.0, "tabler": 36.5},
}


def build(target: AnyPath, *, side: int = SIDE, archives: Path | None = None, overwrite: bool = False) -> dict:
    """Make a data set folder of icons, complete or not at all; the same archives give the same bytes.

    Args:
        target: the folder to make.
        side: of the pictures, in pixels.
        archives: a folder with the packages' .tgz files; None fetches them through npm.
        overwrite: replace a data set that is already there.

    Returns:
        Pairs of each split and rule, as statistics.json holds them.

    Raises:
        InputError: the target exists, a package cannot be fetched or is damaged, or a Python package is missing.
    """
    require_packages("array_record", "resvg_py", extra="data", feature="The data set of icons")
    with new_folder(target, overwrite=overwrite, num_bytes=NEEDS * side**2 // SIDE**2, kind=DATASET) as folder:
        with open_archives(archives, packages_of(ICONS)) as source:
            pictures, pairs = _draw(source, side)
        statistics = counts_by_split(pictures, pairs)
        write_pairs(folder, pictures, pairs)
        write_card(folder, statistics, contact_sheet(pictures, pairs, SEED), _data_card(statistics, side))
    return statistics


class Dials:
    """Clocks that no package has: every half hour, as an icon by its time, such as "1:30"."""

    def __init__(self, hand: DrawingSet):
        self._bold = hand is DIALS["bold_dials"]

    def __contains__(self, name: str) -> bool:
        return True

    def svg(self, name: str) -> str:
        hours, minutes = map(int, name.split(":"))
        rim, width = (9, 7) if self._bold else (5, 4)
        face = f'<circle cx="50" cy="50" r="{46 - rim / 2}" fill="#ffffff" stroke="currentColor" stroke-width="{rim}"/>'
        stroke = f'stroke="{NIGHT}" stroke-width="{width}" stroke-linecap="round"'
        hour_hand = f'<path d="M50 50V30" transform="rotate({30 * hours + minutes / 2} 50 50)" {stroke}/>'
        minute_hand = f'<path d="M50 50V19" transform="rotate({6 * minutes} 50 50)" {stroke}/>'
        space = 'xmlns="http://www.w3.org/2000/svg"'
        return f'<svg {space} viewBox="0 0 100 100" width="100" height="100">{face}{hour_hand}{minute_hand}</svg>'


class _DrawnIcon(NamedTuple):
    icon: Icon
    emoji: RenderedEmoji
    split: Split


def _draw(archives: Path, side: int) -> tuple[list[Picture], list[Pair]]:
    emoji = read_emoji(read_names(archives))
    by_set = defaultdict(list)
    for icon in icons(emoji):
        if icon.code in emoji:
            by_set[icon.set].append(icon)
    drawn: list[_DrawnIcon] = []
    for set_, wanted in by_set.items():
        package = Dials(DIALS[set_]) if set_ in DIALS else Icons(archives, ICONS[set_])
        there: dict[str, Icon] = {}
        for icon in wanted:
            if icon.name in package:
                there.setdefault(icon.key, icon)
        drawn += (_draw_icon(icon, package, emoji[icon.code], archives, side) for icon in there.values())
    pictures = [
        Picture(item.icon.set, item.icon.key, item.emoji.emoji.name, item.split, captions(item.emoji), encode_webp(item.emoji.pixels))
        for item in drawn
    ]
    return pictures, list(_pairs(drawn, edits(emoji)))


def _draw_icon(icon: Icon, package: Icons | Dials, emoji: Emoji, archives: Path, side: int) -> _DrawnIcon:
    svg = package.svg(icon.name)
    if icon.kind in RADII:  # the glyph is the lit part; eyes and mouth are holes in a face
        svg = _on_ground(svg, f'<circle cx="50" cy="50" r="{RADII[icon.kind][icon.set]}" fill="{NIGHT}"/>', icon.colour, 100)
    elif icon.kind in ("keycap", "zodiac", "arrow") and icon.set not in ("mingcute", "bootstrap"):  # whose signs are on a button already
        svg = _on_ground(svg, f'<rect x="5" y="5" width="90" height="90" rx="18" fill="{icon.colour}"/>', "#ffffff", 70)
    elif icon.colour:
        svg = _on_ground(svg, "", icon.colour, 100)
    pixels = render(Drawing(icon.code, svg), str(archives / HANDS[icon.set].archive), side)
    split: Split = "test" if stable_hash(SEED, "/".join(icon)) < HELD_OUT * 2**64 else "train"
    return _DrawnIcon(icon, RenderedEmoji(icon.set, emoji, pixels, main_colours(pixels)), split)


def _on_ground(svg: str, ground: str, colour: str, size: int) -> str:
    """A glyph in a colour over a ground of 100 x 100, in its middle and so large."""
    head, _, rest = svg.partition(" viewBox=")
    box, _, body = rest.partition(">")
    place = f'x="{50 - size / 2}" y="{50 - size / 2}" width="{size}" height="{size}" color="{colour}"'
    glyph = f"<svg {place} viewBox={box.partition(' width=')[0]}>{body}"
    return f'{head} viewBox="0 0 100 100" width="100" height="100">{ground}{glyph}</svg>'


def _pairs(drawn: list[_DrawnIcon], candidates: list[Edit]) -> Iterator[Pair]:
    """Every edit between icons of one hand and variant, of flags a sample."""
    units: dict[tuple[str, str, str], dict[str, int]] = defaultdict(dict)
    for number, item in enumerate(drawn):
        units[item.icon.unit][item.icon.code] = number
    by_rule = defaultdict(list)
    for edit in candidates:
        by_rule[edit.rule].append(edit)
    for (kind, set_, _), numbers in units.items():
        rules = FACE_RULES if kind == "face" else (kind,)
        found = [edit for rule in rules for edit in by_rule[rule] if edit.source in numbers and edit.target in numbers]
        if kind == "flag":
            found = sorted(found, key=lambda edit: stable_hash(SEED, f"{set_}/{edit.source}>{edit.target}"))[:FLAG_PAIRS]
        for edit in found:
            source, target = (drawn[numbers[code]] for code in (edit.source, edit.target))
            same = np.array_equal(source.emoji.pixels, target.emoji.pixels)  # as flags of some territories are
            if not same and pair_split(source.split, target.split) in SPLITS:
                texts = instructions(edit, source.emoji.emoji, target.emoji.emoji)
                text = blueprint(edit, texts[0], source.emoji, target.emoji)
                yield Pair(numbers[edit.source], numbers[edit.target], edit.rule, texts, text)


def _data_card(statistics: Mapping[str, Mapping], side: int) -> str:
    train, test = (statistics["pairs"][split] for split in SPLITS)
    sources = [(name, item.title, item.author, item.licence, f"`{item.name}` {item.version}") for name, item in ICONS.items()]
    sources += [(name, item.title, item.author, item.licence, "drawn here") for name, item in DIALS.items()]
    return f"""# Icons: edit pairs for training

Icons of flags, keys, signs, arrows, moons, clocks, fingers, faces and states, at {side} x {side} pixels on white, and of gestures and
things, which have captions alone. They show the same as emoji do, also as emoji that are held out in the data set of emoji. Glyphs have
got a colour, and those of keys, signs and arrows a button behind them.

{markdown_table(("set", "style", "by", "licence", "npm package"), sources)}

{markdown_table(("rule", *SPLITS), [(rule, train[rule], test[rule]) for rule in sorted(train)])}
"""
