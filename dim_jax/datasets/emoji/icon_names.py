"""Which icons show what emoji show: their names in each set, and the colours that glyphs get."""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from dim_jax.datasets.emoji import icon_tables, icon_things, tables
from dim_jax.datasets.emoji.names import TONES, Emoji
from dim_jax.datasets.emoji.packages import DIALS
from dim_jax.datasets.hashing import stable_hash

COLOURS = {"blue": "#2f7fd6", "purple": "#8e4fc9", "orange": "#f08a24", "green": "#3f9f4f", "grey": "#8a8f98"}
SKIN = dict(zip(("", *TONES), ("#ffcc22", "#f7dece", "#f3d2a2", "#d5ab88", "#af7e57", "#7c533e"), strict=True))
LIGHT = "#ffd84d"  # of moons
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
FACE_RULES = ("expression", "accessory_on", "accessory_off")
THINGS = ("animals-nature", "food-drink", "activities", "travel-places", "objects")  # of Unicode's groups
FILLED = ("phosphor", "bootstrap", "mingcute")  # sets whose filled icons end with -fill
PARTS = {"up": "top", "down": "bottom"}  # Material's words for diagonal arrows


class Icon(NamedTuple):
    """A picture to draw: what it shows, in whose hand, by which icon, and how."""

    kind: str  # the rule of the edits that it is a part of; "face", with rules of its own (`FACE_RULES`); "gesture", "thing": of none
    set: str
    code: str  # of the emoji that shows the same
    name: str  # of the icon in its package
    variant: str  # pictures of one edit share it
    colour: str  # of a glyph, or "" for an icon that has its own

    @property
    def key(self) -> str:
        """What tells it from others of its set."""
        return "-".join(filter(None, (self.code, self.variant)))

    @property
    def unit(self) -> tuple[str, str, str]:
        """What both pictures of an edit share."""
        return self.kind, self.set, self.variant


def icons(emoji: Mapping[str, Emoji]) -> Iterator[Icon]:
    """The icons of all sets. Some are not there: a set may lack a flag, or a sign. Of those with one key the first that is there counts."""
    for code, item in emoji.items():
        if item.group == "flags" and item.details:
            region = _region(code)
            names = {"flag_icons": f"{region}-4x3", "flagpack": region, "coreui": region, "circle_flags": region}
            yield from (Icon("flag", set_, code, name, "", "") for set_, name in names.items())
    coloured = {
        "keycap": _key_names(), "zodiac": _sign_names(), "arrow": _arrow_names(), "clock": _clock_names(), "state": _of(icon_tables.STATES)
    }  # fmt: skip
    for kind, names in coloured.items():
        for (set_, code), name in names.items():
            yield from (Icon(kind, set_, code, name, word, colour) for word, colour in COLOURS.items())
    yield from (Icon("face", set_, code, name, "", SKIN[""]) for (set_, code), name in _of(icon_tables.FACES).items())
    for code, name in tables.MOONS.items():
        phase = name.removesuffix(" moon").replace(" ", "-")
        number = "-3" if phase.endswith(("crescent", "gibbous")) else ""
        yield Icon("moon", "material", code, f"moon-{phase}", "", LIGHT)
        yield Icon("moon", "weather", code, f"moon-{phase.replace('last', 'third')}{number}", "", LIGHT)
    for code, way in tables.HANDS["index finger"].items():
        for toned, tone, colour in _in_all_tones(code):
            for set_, name in (("material", "hand-pointing"), ("awesome", "hand-point")):
                yield Icon("hand_direction", set_, toned, f"{name}-{way.rpartition(' ')[2]}", tone, colour)
    for (set_, code), name in _of(icon_tables.GESTURES).items():
        yield from (Icon("gesture", set_, toned, name, "", colour) for toned, _, colour in _in_all_tones(code))
    yield from _things(emoji)


def _in_all_tones(code: str) -> Iterator[tuple[str, str, str]]:
    """The code of a hand with each skin tone, the tone, and its colour."""
    return ((f"{code}-{tone}" if tone else code, tone, colour) for tone, colour in SKIN.items())


def _things(emoji: Mapping[str, Emoji]) -> Iterator[Icon]:
    """Animals, food, tools and the like, in every set by several names, each in a colour that its name has nothing to do with."""
    for code, item in emoji.items():
        if item.group not in THINGS or item.tones:
            continue
        own = re.sub(r"\W+", "-", item.name.lower())
        for set_, others in icon_things.OTHERS.items():
            colour = "" if set_ == "icon_park" else list(COLOURS.values())[stable_hash(0, f"{set_}/{code}") % len(COLOURS)]
            for word in icon_things.NAMES.get(item.name, own).split():
                if word != own or own not in others:
                    yield Icon("thing", set_, code, f"{word}-fill" if set_ in FILLED else word, "", colour)


def _region(code: str) -> str:
    """The region of a flag, such as "de" or "gb-eng"."""
    points = [int(point, 16) for point in code.split("-")]
    if points[0] == 0x1F3F4:  # a black flag, and letters as tags
        letters = "".join(chr(point - 0xE0000) for point in points[1:])
        return f"{letters[:2]}-{letters[2:]}"
    return "".join(chr(point - 0x1F1E6 + ord("a")) for point in points)


Names = dict[tuple[str, str], str]  # (set, code of the emoji) -> name of the icon


def _key_names() -> Names:
    signs = {"#": ("pound", "hash", "hash-bold", "hashtag"), "*": ("asterisk", "asterisk", "asterisk-bold", "asterisk")}
    names: Names = {}
    for code, key in tables.KEYCAPS.items():
        numeric = () if key in signs else (f"numeric-{key}", f"number-{key}", f"number-{DIGITS[int(key)]}-bold", key, f"{key}-square-fill")
        names |= _of_sets(code, *signs.get(key, numeric))
    return names


def _sign_names() -> Names:
    names: Names = {}
    for code, name in tables.ZODIAC.items():
        names |= {(set_, code): f"zodiac-{name.lower()}" for set_ in ("material", "tabler", "lucide")}
        names["mingcute", code] = f"{name.lower()}-fill"
    return names


def _arrow_names() -> Names:
    names: Names = {}
    for code, way in tables.ARROWS.items():
        words = [word for word in way.split() if word not in ("to", "the", "and")]
        other = "-".join(PARTS.get(word, word) if len(words) == 2 else word for word in words)
        plain = f"arrow-{'-'.join(words)}"
        names |= _of_sets(code, f"arrow-{other}-thick", plain, f"{plain}-bold", plain, f"{plain}-square-fill")
    return names


def _clock_names() -> Names:
    names: Names = {}
    for code, text in tables.CLOCKS.items():
        hour, whole = int(re.findall(r"\d+", text)[0]), text.endswith("o'clock")
        if whole:
            names |= {("material", code): f"clock-time-{DIGITS[hour]}", ("tabler", code): f"clock-hour-{hour}-filled"}
        names |= {(set_, code): f"{hour}:{'00' if whole else '30'}" for set_ in DIALS}
    return names


def _of_sets(code: str, *names: str) -> Names:
    # The last sets have no icons of some kinds.
    return {(set_, code): name for set_, name in zip(("material", "tabler", "phosphor", "awesome", "bootstrap"), names, strict=False)}


def _of(table: Mapping[str, Mapping[str, str]]) -> Names:
    return {(set_, code): name for set_, names in table.items() for code, name in names.items()}
