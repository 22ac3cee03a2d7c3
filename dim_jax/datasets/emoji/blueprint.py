"""Blueprints written by rule, in Draw-In-Mind's five numbered sections (arXiv 2509.01986).

They play the designer's part: what to keep and what to change comes from the rule, positions and colours are measured on both pictures.
So this designer has seen the target, and tells more than the instruction does.
"""

from dim_jax.datasets.emoji.packages import HANDS
from dim_jax.datasets.emoji.render import RenderedEmoji
from dim_jax.datasets.emoji.rules import Edit
from dim_jax.datasets.emoji.wording import describe, with_article
from dim_jax.datasets.measures import Mask, Pixels, bounding_box, changed_mask, foreground_mask, position_in_words
from dim_jax.datasets.words import capitalize_first, join_with_and
from dim_jax.designer.sections import format_sections

# What changes, and what must stay as it is.
AREAS = {
    "skin_tone": ("the skin", "outlines, pose and everything that is not skin"),
    "gender": ("face, hair and figure", "skin tone, outfit, pose and style"),
    "hair": ("the hair", "face, skin tone and clothes"),
    "occupation_on": ("clothes, headwear and tools", "face, skin tone and hair"),
    "occupation_off": ("clothes, headwear and tools", "face, skin tone and hair"),
    "occupation_swap": ("clothes, headwear and tools", "face, skin tone and hair"),
    "facing": ("the direction of the whole figure", "colours, pose and size"),
    "hand_direction": ("the direction of the hand", "skin tone and style"),
    "clock": ("the two hands of the clock", "the dial and its rim"),
    "moon": ("the lit part of the disc", "the disc itself"),
    "arrow": ("the direction of the arrow", "the button behind it"),
    "keycap": ("the sign on the key", "the key itself"),
    "zodiac": ("the white sign", "the button behind it"),
    "colour": ("the colour of the surface", "shape, size and shading"),
    "shape": ("the outline", "the colour"),
    "expression": ("eyes, brows, mouth and what is around them", "the style and the size of the head"),
    "cat_expression": ("eyes and mouth of the cat", "ears, whiskers and the shape of the head"),
    "accessory_on": ("the place where the addition belongs", "the round head"),
    "accessory_off": ("the place where the addition was", "the round head"),
    "face_to_cat": ("the head, which gets ears and whiskers", "the expression"),
    "cat_to_face": ("the head, which loses ears and whiskers", "the expression"),
    "animal_face": ("the whole figure, since only the face is kept", "the animal's colours"),
    "animal_whole": ("the whole figure, since the body is added", "the animal's colours"),
    "flag": ("the pattern of the flag", "the form of the cloth"),
    "state": ("the part that the instruction names", "everything else about the object"),
    "style": ("the way of drawing, everywhere", "what is shown and its pose"),
}


def blueprint(edit: Edit, instruction: str, source: RenderedEmoji, target: RenderedEmoji) -> str:
    """The blueprint of an edit from one picture to another."""
    part, unchanged = AREAS[edit.rule]
    before, after = source.pixels, target.pixels
    old, new = HANDS[source.set], HANDS[target.set]
    change = changed_mask(before, after)
    appearance = f"mainly {join_with_and(target.colours)}" + (f", drawn in {new.look}" if new != old else "")
    result = f"{capitalize_first(with_article(describe(target.emoji)))} as {with_article(f'{new.title} {new.kind}')}, {appearance}."
    texts = (
        instruction,
        f"One {old.title} {old.kind}, {with_article(describe(source.emoji))}, on plain white. It fills {_size(before)}.",
        f"It is mainly {join_with_and(source.colours)}, drawn in {old.look}.",
        f"Change {part}: {_position(change, new.kind)}, {_share(change, before, after)} of the drawing. Keep {unchanged}.",
        f"{result} It fills {_size(after)}, on plain white.",
    )
    return format_sections(texts)


def _size(pixels: Pixels) -> str:
    left, top, right, bottom = bounding_box(foreground_mask(pixels))
    width, height = right - left, bottom - top
    if min(width, height) > 0.85:
        return "the whole square"
    if max(width, height) < 0.6:
        return f"a small part of the square, in {position_in_words(left, right, top, bottom)}"
    if width < 0.7 * height:
        return "an upright strip in the middle"
    if height < 0.7 * width:
        return "a wide strip in the middle"
    return "most of the square"


def _position(mask: Mask, kind: str) -> str:
    left, top, right, bottom = bounding_box(mask)
    if right - left > 0.75 and bottom - top > 0.75:
        return f"spread over the whole {kind}"
    return f"in {position_in_words(left, right, top, bottom)}"


def _share(change: Mask, before: Pixels, after: Pixels) -> str:
    """Pixels that change per pixel that is drawn before or after, in words."""
    share = change.sum() / max((foreground_mask(before) | foreground_mask(after)).sum(), 1)
    for limit, word in ((0.15, "about a tenth"), (0.3, "about a quarter"), (0.42, "about a third"), (0.6, "about half"), (0.85, "most")):
        if share < limit:
            return word
    return "all"
