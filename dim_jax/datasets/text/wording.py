"""Texts about texts: what a picture says and how, captions, and the instruction of a change in several wordings."""

from dim_jax.datasets.text.rules import Change
from dim_jax.datasets.text.scenes import SIZES, Label, Scene
from dim_jax.datasets.words import capitalize_first, join_with_and

# Every wording says all that is to be known.
INSTRUCTIONS = {
    "word": (
        'Change "{text}" to "{new_text}".', 'Replace the text "{text}" by "{new_text}".', 'Write "{new_text}" instead of "{text}".',
        'Let it say "{new_text}" {at}, and not "{text}".', 'Rewrite "{text}" as "{new_text}" and keep everything else.',
    ),
    "font": (
        'Write "{text}" in {new_face} letters.', 'Change the letters of "{text}" from {face} to {new_face}.',
        'Set "{text}" in {new_face} letters instead of {face} ones.', 'Give the text {at} {new_face} letters.',
    ),
    "colour": (
        'Make the text "{text}" {new_colour}.', 'Change the colour of "{text}" from {colour} to {new_colour}.',
        'Recolour "{text}": {new_colour} instead of {colour}.', 'Write the text {at} in {new_colour}.',
    ),
    "size": (
        'Make "{text}" {larger}.', 'Change the size of "{text}" from {size} to {new_size}.', 'Write "{text}" in {new_size} letters.',
        'Make the letters {at} {larger}: {new_size} instead of {size}.',
    ),
    "position": (
        'Move "{text}" {to}.', 'Put "{text}" {new_at}.', 'Move "{text}" from where it is, {at}, {to}.',
        'The text "{text}" should stand {new_at} instead of {at}.',
    ),
}  # fmt: skip
POSITION_TEXTS = {
    ("top", "left"): "at the top left", ("top", "middle"): "at the top", ("top", "right"): "at the top right",
    ("middle", "left"): "on the left", ("middle", "middle"): "in the middle", ("middle", "right"): "on the right",
    ("bottom", "left"): "at the bottom left", ("bottom", "middle"): "at the bottom", ("bottom", "right"): "at the bottom right",
}  # fmt: skip


def destination(position: tuple[str, str]) -> str:
    """Where a text is moved: "to the top left"."""
    return f"to {POSITION_TEXTS[position].partition(' ')[2]}"


def instructions(change: Change) -> tuple[str, ...]:
    """The instruction in every wording of its rule, the plainest first."""
    old, new = change.old, change.new
    steps = new.size - old.size
    words = {
        "text": old.text, "face": old.face.name, "colour": old.colour, "size": SIZES[old.size],
        "new_text": new.text, "new_face": new.face.name, "new_colour": new.colour, "new_size": SIZES[new.size],
        "at": POSITION_TEXTS[old.position], "new_at": POSITION_TEXTS[new.position], "to": destination(new.position),
        "larger": "much " * (abs(steps) > 1) + ("larger" if steps > 0 else "smaller"),
    }  # fmt: skip
    return tuple(wording.format_map(words) for wording in INSTRUCTIONS[change.rule])


def captions(scene: Scene, background: str) -> tuple[str, ...]:
    """Texts that describe a picture; `background` describes what they stand on."""
    texts = join_with_and(tuple(f'"{label.text}"' for label in scene.labels))
    return (
        f"{capitalize_first(background)} with the text {join_with_and(tuple(map(describe_label, scene.labels)))}.",
        f"The text {join_with_and(tuple(map(describe_label, scene.labels)))}, on {background}.",
        f"{texts} on {background}.",
        f"A picture that says {texts}.",
    )


def describe_label(label: Label) -> str:
    """A text with all that is to be seen of it: `"OPEN" in large red bold letters at the top`."""
    return f'"{label.text}" in {SIZES[label.size]} {label.colour} {label.face.name} letters {POSITION_TEXTS[label.position]}'


def spell(text: str) -> str:
    """A text letter by letter: "C-O-L-D D-R-I-N-K"."""
    return " ".join("-".join(word) for word in text.split())
