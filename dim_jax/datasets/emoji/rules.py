"""Edits that follow from what emoji are: which emoji becomes which, by which rule, and the words that say so.

An edit names emoji, not pictures: every set that draws both gives a pair. `style` is the exception, one emoji from set to set.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import permutations

from dim_jax.datasets.emoji import tables
from dim_jax.datasets.emoji.names import TONES, Emoji

FACES = (
    "face-smiling", "face-affection", "face-tongue", "face-hand", "face-neutral-skeptical", "face-sleepy", "face-unwell", "face-hat",
    "face-glasses", "face-concerned", "face-negative",
)  # fmt: skip
NO_FACES = ("1f480", "2620")
HAIR_WORDS = {"": "ordinary hair", "bald": "a bald head"}
GENDER_WORDS = {"person": "gender-neutral person"}


@dataclass(frozen=True)
class Edit:
    """From one emoji to another, by a rule; `words` fill the rule's wordings."""

    source: str
    target: str
    rule: str
    words: dict[str, str]


def edits(emoji: dict[str, Emoji]) -> list[Edit]:
    """Every edit of every rule but `style`, in a fixed order. Emoji that are not given are in none."""
    people = [item for item in emoji.values() if item.tone is not None]
    candidates = [
        *_skin_tone(people), *_gender(people), *_hair(people), *_occupation(people), *_facing(people), *_hands(emoji),
        *_table("clock", tables.CLOCKS), *_table("moon", tables.MOONS), *_table("arrow", tables.ARROWS),
        *_table("keycap", tables.KEYCAPS), *_table("zodiac", tables.ZODIAC),
        *_colour(), *_shape(), *_faces(emoji), *_both_directions("face_to_cat", "cat_to_face", tables.CATS), *_animals(emoji),
        *_flags(emoji), *_states(emoji),
    ]  # fmt: skip
    return [edit for edit in candidates if edit.source in emoji and edit.target in emoji]


def without_tone(code: str) -> str:
    """The code of the same emoji in the yellow default."""
    return "-".join(point for point in code.split("-") if point not in TONES)


def _group_by(items: Iterable[Emoji], key) -> Iterator[list[Emoji]]:
    groups = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return (group for group in groups.values() if len(group) > 1)


def _skin_tone(people: list[Emoji]) -> Iterator[Edit]:
    for group in _group_by(people, lambda item: without_tone(item.code)):
        for a, b in permutations(group, 2):
            yield Edit(a.code, b.code, "skin_tone", {"old": a.tone or "yellow", "new": b.tone or "yellow"})


def _gender(people: list[Emoji]) -> Iterator[Edit]:
    gendered = [item for item in people if item.gender]
    for group in _group_by(gendered, lambda item: (item.family, item.tone, item.hair, item.right)):
        for a, b in permutations(group, 2):
            old, new = (GENDER_WORDS.get(item.gender or "", item.gender or "") for item in (a, b))
            yield Edit(a.code, b.code, "gender", {"old": old, "new": new})


def _hair(people: list[Emoji]) -> Iterator[Edit]:
    for group in _group_by((item for item in people if item.family == "1f9d1"), lambda item: (item.gender, item.tone)):
        for a, b in permutations(group, 2):
            old, new = (HAIR_WORDS.get(item.hair, item.hair) for item in (a, b))
            yield Edit(a.code, b.code, "hair", {"person": a.gender or "person", "old": old, "new": new})


def _occupation(people: list[Emoji]) -> Iterator[Edit]:
    working = [item for item in people if item.family in tables.OCCUPATIONS or (item.family == "1f9d1" and not item.hair)]
    for group in _group_by(working, lambda item: (item.gender, item.tone)):
        for a, b in permutations(group, 2):
            old, new = tables.OCCUPATIONS.get(a.family, ""), tables.OCCUPATIONS.get(b.family, "")
            rule = "occupation_swap" if old and new else "occupation_on" if new else "occupation_off"
            yield Edit(a.code, b.code, rule, {"person": a.gender or "person", "old": old, "new": new})


def _facing(people: list[Emoji]) -> Iterator[Edit]:
    for group in _group_by(people, lambda item: (item.family, item.gender, item.tone)):
        for a, b in permutations(group, 2):
            if a.right != b.right:
                yield Edit(a.code, b.code, "facing", {"old": "left" if b.right else "right", "new": "right" if b.right else "left"})


def _hands(emoji: dict[str, Emoji]) -> Iterator[Edit]:
    for thing, hands in tables.HANDS.items():
        toned = [item for item in emoji.values() if without_tone(item.code) in hands]
        for group in _group_by(toned, lambda item: item.tone):
            for a, b in permutations(group, 2):
                yield Edit(a.code, b.code, "hand_direction", {"thing": thing, "old": _direction(hands, a), "new": _direction(hands, b)})


def _direction(hands: dict[str, str], item: Emoji) -> str:
    return hands[without_tone(item.code)]


def _table(rule: str, names: dict[str, str]) -> Iterator[Edit]:
    for a, b in permutations(names, 2):
        yield Edit(a, b, rule, {"old": names[a], "new": names[b]})


def _colour() -> Iterator[Edit]:
    for thing, colours in tables.COLOURS.items():
        for a, b in permutations(colours, 2):
            yield Edit(a, b, "colour", {"thing": thing, "old": colours[a], "new": colours[b]})


def _shape() -> Iterator[Edit]:
    for a, b in permutations(("heart", "circle", "square"), 2):
        for source, colour in tables.COLOURS[a].items():
            for target in (code for code, name in tables.COLOURS[b].items() if name == colour):
                yield Edit(source, target, "shape", {"colour": colour, "old": a, "new": b})


def _faces(emoji: dict[str, Emoji]) -> Iterator[Edit]:
    faces = [code for code, item in emoji.items() if item.subgroup in FACES and code not in NO_FACES]
    for a, b in permutations(faces, 2):
        for plain, decorated, rule in ((a, b, "accessory_on"), (b, a, "accessory_off")):
            if plain in tables.PLAIN_FACES and decorated in tables.ACCESSORIES:
                yield Edit(a, b, rule, {"item": tables.ACCESSORIES[decorated]})
                break
        else:
            yield Edit(a, b, "expression", {})
    cats = [code for code, item in emoji.items() if item.subgroup == "cat-face"]
    for a, b in permutations(cats, 2):
        yield Edit(a, b, "cat_expression", {})


def _both_directions(rule: str, inverse_rule: str, couples: dict[str, str], words: dict[str, str] | None = None) -> Iterator[Edit]:
    for first, second in couples.items():
        yield Edit(first, second, rule, words or {})
        yield Edit(second, first, inverse_rule, words or {})


def _animals(emoji: dict[str, Emoji]) -> Iterator[Edit]:
    for body, face in tables.ANIMALS.items():
        if body in emoji:
            yield from _both_directions("animal_face", "animal_whole", {body: face}, {"animal": emoji[body].head})


def _flags(emoji: dict[str, Emoji]) -> Iterator[Edit]:
    flags = [(item.code, item.details[0]) for item in emoji.values() if item.group == "flags" and item.details]
    for (a, old), (b, new) in permutations(flags, 2):
        yield Edit(a, b, "flag", {"old": old, "new": new})


def _states(emoji: dict[str, Emoji]) -> Iterator[Edit]:
    by_shape = defaultdict(dict)
    for item in emoji.values():
        if item.tone is not None:
            by_shape[without_tone(item.code)][item.tone] = item.code
    for first, second, instruction, inverse in tables.STATES:
        for tone in sorted(by_shape[first].keys() & by_shape[second].keys()):
            yield Edit(by_shape[first][tone], by_shape[second][tone], "state", {"order": instruction})
            yield Edit(by_shape[second][tone], by_shape[first][tone], "state", {"order": inverse})
