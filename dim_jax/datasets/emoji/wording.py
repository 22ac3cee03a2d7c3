"""Texts about emoji in plain English: what a picture shows, captions, and instructions in several wordings for every rule."""

import re

from dim_jax.datasets.emoji.names import Emoji
from dim_jax.datasets.emoji.packages import HANDS
from dim_jax.datasets.emoji.render import RenderedEmoji
from dim_jax.datasets.emoji.rules import Edit
from dim_jax.datasets.words import capitalize_first, join_with_and

# {source} and {target} are what the pictures show, {what} the same without features; a_ and the_ put an article before them.
INSTRUCTIONS = {
    "skin_tone": (
        "Make the skin tone {new}.", "Change the skin from {old} to {new}.", "Give {the_what} {new} skin.",
        "Recolour the skin: {new} instead of {old}.", "The skin of {the_what} should be {new}.",
    ),
    "gender": (
        "Turn {the_source} into {a_target}.", "Make the {old} a {new}.", "Show a {new} instead of a {old}.",
        "Change this {old} into a {new} and keep everything else.",
    ),
    "hair": (
        "Give the {person} {new}.", "Replace {old} by {new}.", "The {person} should have {new}.", "Change the hair: {new}.",
    ),
    "occupation_on": (
        "Make the {person} a {new}.", "Dress the {person} as a {new}.", "Turn the {person} into a {new}.",
        "Give the {person} the outfit and tools of a {new}.",
    ),
    "occupation_off": (
        "Make the {old} an ordinary {person}.", "Take away everything that belongs to a {old}.",
        "Remove the outfit and tools of the {old}.", "Leave only a plain {person} of the {old}.",
    ),
    "occupation_swap": (
        "Make the {old} a {new}.", "Change the {person} from a {old} into a {new}.", "Swap the outfit of the {old} for that of a {new}.",
        "Turn the {old} into a {new}.", "The {person} should be a {new} now.",
    ),
    "facing": (
        "Make {the_what} face {new}.", "Turn {the_what} around to face {new}.", "Flip {the_what} from {old} to {new}.",
        "Let {the_what} look to the {new}.",
    ),
    "hand_direction": (
        "Point the {thing} {new}.", "Turn the {thing} so that it points {new}.", "Let the {thing} point {new} instead of {old}.",
    ),
    "clock": (
        "Set the clock to {new}.", "Make the clock show {new}.", "Change the time from {old} to {new}.",
        "Move the hands of the clock to {new}.",
    ),
    "moon": (
        "Show a {new}.", "Change the {old} to a {new}.", "Turn the moon into a {new}.", "Let the moon be a {new} instead of a {old}.",
    ),
    "arrow": (
        "Point the arrow {new}.", "Rotate the arrow so that it points {new}.", "Let the arrow point {new} instead of {old}.",
        "Turn the arrow {new}.",
    ),
    "keycap": (
        "Change the key from {old} to {new}.", "Write {new} on the key.", "Replace {old} by {new}.", "Show the key {new}.",
    ),
    "zodiac": (
        "Replace {old} by {new}.", "Show the sign of {new}.", "Change the sign from {old} to {new}.", "Draw {new} on the button.",
    ),
    "colour": (
        "Make the {thing} {new}.", "Turn the {old} {thing} {new}.", "Change the colour from {old} to {new}.", "Paint the {thing} {new}.",
    ),
    "shape": (
        "Turn the {old} into a {new}.", "Change the {old} to a {new} of the same colour.", "Make it a {colour} {new}.",
        "Replace the {colour} {old} by a {colour} {new}.",
    ),
    "expression": (
        "Change the expression to {a_target}.", "Turn {the_source} into {a_target}.", "Make it {a_target}.",
        "Replace the expression: {target}.", "Show {a_target} instead.",
    ),
    "cat_expression": (
        "Turn {the_source} into {a_target}.", "Change the cat's expression: {target}.", "Make it {a_target}.",
    ),
    "accessory_on": (
        "Add {item} to the face.", "Give the face {item}.", "Put {item} on {the_source}.", "The face should have {item}.",
    ),
    "accessory_off": (
        "Remove {item} from the face.", "Take away {item}.", "Show {a_target} without {item}.",
    ),
    "face_to_cat": (
        "Turn the face into a cat.", "Make {the_source} {a_target}.", "Give the face cat's ears and whiskers, with the same expression.",
    ),
    "cat_to_face": (
        "Turn the cat into a round yellow face.", "Make {the_source} {a_target}.", "Remove ears and whiskers and keep the expression.",
    ),
    "animal_face": (
        "Show only the face of the {animal}.", "Zoom in on the {animal}'s face.", "Replace the whole {animal} by its face.",
    ),
    "animal_whole": (
        "Show the whole {animal}.", "Zoom out from the face to the whole {animal}.", "Add the body of the {animal}.",
    ),
    "flag": (
        "Replace it by the flag of {new}.", "Change the flag of {old} to that of {new}.", "Show the flag of {new}.",
        "Make it the flag of {new} instead of {old}.",
    ),
    "state": ("{order}", "Turn {the_source} into {a_target}.", "Make it {a_target}."),
    "style": (
        "Redraw it in the {new} style.", "Change the style from {old} to {new}.", "Draw {the_source} as {new} would.",
        "Make it look like {new}: {look}.", "Turn this {old} emoji into a {new} emoji.",
    ),
}  # fmt: skip

PROPER = ("Santa Claus", "Mrs. Claus", "Mx Claus", "Aries", "Taurus", "Gemini", "Cancer", "Leo", "Virgo", "Libra", "Scorpio", "Sagittarius")
PROPER += ("Capricorn", "Aquarius", "Pisces", "Ophiuchus", "Statue of Liberty", "Mount Fuji", "mount fuji", "zzz", "ZZZ")
ONE = ("person ", "man ", "woman ", "face ", "thumbs ")
PLURAL = ("people", "men ", "women ", "palms", "footprints")
WITH_ARTICLE = ("United", "Netherlands", "Philippines", "Bahamas", "Gambia", "Maldives", "Dominican Republic", "Central African Republic")
WITH_ARTICLE += ("British Indian", "European Union", "Vatican", "Isle of Man", "Comoros", "Congo")
CONSONANTS = ("unicorn", "uni", "one", "eu", "ewe", "up!", "user", "u-")
VOWELS = ("hour", "atm", "sos", "ng ", "x-ray", "s-", "a ", "id ", "ok ", "on!", "end ", "om", "elf", "up-")


def describe(emoji: Emoji) -> str:
    """What the emoji shows, without an article: "woman health worker with medium skin tone"."""
    base = base_description(emoji)
    tones = [f"{emoji.tone} skin tone"] if emoji.tone else [f"{' and '.join(emoji.tones)} skin tones"] * bool(emoji.tones)
    features = tones + [emoji.hair] * bool(emoji.hair and emoji.hair != "bald")
    joint = " and " if " with " in base else " with "
    bald = "bald " if emoji.hair == "bald" else ""
    return f"{bald}{base}" + (joint + " and ".join(features) if features else "") + (" facing right" if emoji.right else "")


def base_description(emoji: Emoji) -> str:
    """The same without skin tone, hair and direction."""
    if emoji.group == "flags":
        return f"flag of {country(emoji.details[0])}" if emoji.details else emoji.head
    if emoji.subgroup == "keycap":
        return f"key {emoji.details[0]}"
    hair = [detail for detail in emoji.details if detail in ("beard", "blond hair")]
    if hair:
        return f"{emoji.head} with {'a beard' if hair[0] == 'beard' else hair[0]}"
    return f"{emoji.head} of {' and '.join(emoji.details)}" if emoji.details else emoji.head


def country(name: str) -> str:
    """A country's name with its article, where it has one."""
    return f"the {name}" if name.startswith(WITH_ARTICLE) or name.endswith("Islands") else name


def with_article(name: str) -> str:
    """With the indefinite article, where English wants one."""
    word = re.split(" with | of | in | on ", name)[0]
    if name.startswith("flag of "):
        return f"the {name}"
    plural = word.endswith("s") and not word.endswith(("ss", "us", "is")) and not word.startswith(ONE)
    if plural or name.startswith((*PROPER, *PLURAL)):
        return name
    low = name.lower()
    vowel = low.startswith(VOWELS) or (low[0] in "aeiou" and not low.startswith(CONSONANTS))
    return f"{'an' if vowel else 'a'} {name}"


def with_the(name: str) -> str:
    return name if name.startswith(PROPER) else f"the {name}"


def instructions(edit: Edit, source: Emoji, target: Emoji) -> tuple[str, ...]:
    """The instruction of an edit in every wording of its rule, the plainest first."""
    names = {"source": describe(source), "target": describe(target), "what": base_description(source)}
    words = dict(edit.words)
    for name, text in names.items():
        words |= {name: text, f"a_{name}": with_article(text), f"the_{name}": with_the(text)}
    texts = (_tidy(wording.format_map(words)) for wording in INSTRUCTIONS[edit.rule])
    return tuple(dict.fromkeys(texts))


def captions(emoji: RenderedEmoji) -> tuple[str, ...]:
    """Texts that describe a picture, by what it shows, its main colours, and whose style it is."""
    style, text = HANDS[emoji.set], describe(emoji.emoji)
    return tuple(
        _tidy(caption)
        for caption in (
            f"{with_article(text)}, {style.title} {style.kind} style.",
            f"{style.title} {style.kind} of {with_article(text)}.",
            f"{with_article(text)} on a white background, drawn by {style.title} in {style.look}.",
            f"{with_article(text)} in {join_with_and(emoji.colours)}, as a {style.title} {style.kind}.",
        )
    )


def _tidy(text: str) -> str:
    """A capital first, and "a artist" mended: nouns that a wording puts after its own article may begin with a vowel."""
    words = text.split(" ")
    for index, follower in enumerate(words[1:]):
        if words[index] == "a" and with_article(follower).startswith("an "):
            words[index] = "an"
    return capitalize_first(" ".join(words))
