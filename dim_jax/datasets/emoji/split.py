"""The split of emoji and the sample of pairs, by stable hashes.

Emoji are held out by a hash of the unit that they belong to, so that no other emoji matters.
A unit is an emoji in all its skin tones: a woman in one occupation, a heart in one colour. Emoji that only a rule of their own joins,
such as the two states of a lock, are one unit. Where a rule joins units (genders, occupations, colours, clocks), more of them are held
out, since a test pair needs two.
"""

from functools import cache

from dim_jax.data.example import Split
from dim_jax.datasets.emoji import rules, tables
from dim_jax.datasets.emoji.names import Emoji
from dim_jax.datasets.emoji.render import RenderedEmoji
from dim_jax.datasets.hashing import stable_hash

HELD_OUT = 0.1  # of the units, held out
HELD_OUT_OF_FAMILIES = 0.2  # where a test pair needs two units of a family
HELD_OUT_OF_SMALL_FAMILIES = 0.3  # of a small one
SEED = 28141  # chosen by counts so that every rule has pairs in the test, and at most a quarter of what both splits have


def split_of(emoji: Emoji) -> Split:
    """The split of an emoji; it depends on nothing but the emoji and the tables that tie it to others."""
    unit, share = _unit(emoji)
    return "test" if stable_hash(SEED, unit) < share * 2**64 else "train"


def sampling_hash(source: RenderedEmoji, target: RenderedEmoji) -> int:
    """A hash of a pair: a sample of n pairs has the n lowest hashes. It depends on nothing but the pair."""
    return stable_hash(SEED, f"{source.set}/{source.emoji.code}>{target.set}/{target.emoji.code}")


def _unit(emoji: Emoji) -> tuple[str, float]:
    if emoji.family == "1f9d1":  # plain people become an occupation in their own skin tone: tones are held out, not people
        return f"plain person/{emoji.tone}", HELD_OUT_OF_SMALL_FAMILIES
    base = rules.without_tone(emoji.code)
    if emoji.family in tables.FACING:  # both directions
        return f"{emoji.family}/{emoji.gender}", HELD_OUT_OF_SMALL_FAMILIES
    units, shares = _units()
    unit = units.get(base, base)
    return unit, shares.get(unit, HELD_OUT_OF_FAMILIES if emoji.gender else HELD_OUT)


@cache
def _units() -> tuple[dict[str, str], dict[str, float]]:
    """Emoji that go together, by the name of their unit; and the shares of units that are not held out as usual."""
    units: dict[str, str] = {}

    def join(first: str, second: str) -> None:
        first_unit, second_unit = units.setdefault(first, first), units.setdefault(second, second)
        for code in [code for code, name in units.items() if name in (first_unit, second_unit)]:
            units[code] = min(first_unit, second_unit)

    for hands in tables.HANDS.values():
        for code in hands:
            join(next(iter(hands)), code)
    for first, second, *_ in (*tables.CATS.items(), *tables.ANIMALS.items(), *tables.STATES):
        join(first, second)
    small = [code for table in (tables.CLOCKS, tables.MOONS, tables.ARROWS, tables.ZODIAC, tables.KEYCAPS, tables.CATS) for code in table]
    small += [code for hands in tables.HANDS.values() for code in hands]
    small += [code for colours in tables.COLOURS.values() for code in colours]
    shares = {units.get(code, code): HELD_OUT_OF_FAMILIES for code in (*tables.PLAIN_FACES, *tables.ACCESSORIES, *tables.ANIMALS)}
    return units, shares | {units.get(code, code): HELD_OUT_OF_SMALL_FAMILIES for code in small}
