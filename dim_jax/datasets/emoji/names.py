"""What an emoji is, from its code points and its CLDR name: a hand, a man, its skin tone, its hair, the family it belongs to."""

from dataclasses import dataclass

from dim_jax.datasets.emoji.packages import plain_code

TONES = {"1f3fb": "light", "1f3fc": "medium-light", "1f3fd": "medium", "1f3fe": "medium-dark", "1f3ff": "dark"}
HAIR = {"1f9b0": "red hair", "1f9b1": "curly hair", "1f9b3": "white hair", "1f9b2": "bald"}
PEOPLE = {"1f9d1": "person", "1f468": "man", "1f469": "woman"}
SIGNS = {"2642": "man", "2640": "woman"}
RIGHT = ["200d", "27a1"]

# Code points that are one person of another gender or age: what it is a kind of, and its gender.
IRREGULAR = {
    "1f474": ("1f9d3", "man"), "1f475": ("1f9d3", "woman"), "1f9d3": ("1f9d3", "person"),
    "1f466": ("1f9d2", "boy"), "1f467": ("1f9d2", "girl"), "1f9d2": ("1f9d2", "child"),
    "1f934": ("1fac5", "man"), "1f478": ("1fac5", "woman"), "1fac5": ("1fac5", "person"),
    "1f930": ("1fac4", "woman"), "1fac3": ("1fac4", "man"), "1fac4": ("1fac4", "person"),
    "1f385": ("1f9d1-1f384", "man"), "1f936": ("1f9d1-1f384", "woman"), "1f57a": ("1f483", "man"), "1f483": ("1f483", "woman"),
}  # fmt: skip

# Two people have one code point in one skin tone and several in two.
TOGETHER = {
    "1f46b": "1f9d1-1f91d-1f9d1", "1f46c": "1f9d1-1f91d-1f9d1", "1f46d": "1f9d1-1f91d-1f9d1", "1f48f": "1f9d1-2764-1f48b-1f9d1",
    "1f491": "1f9d1-2764-1f9d1", "1faf1-1faf2": "1f91d", "1f9d1-1f430-1f9d1": "1f46f", "1f9d1-1faef-1f9d1": "1f93c",
}  # fmt: skip


@dataclass(frozen=True)
class Emoji:
    """An emoji and its features.

    Attributes:
        code: its code points, as in `plain_code`.
        name: its CLDR name, such as "woman health worker: medium skin tone".
        head: the name without features: "woman health worker".
        details: features other than skin tone, hair and direction, such as the members of a family.
        group, subgroup: of Unicode's emoji list, such as "people-body" and "person-role".
        tones: the skin tones in the order of their code points, "light" to "dark".
        gender: "man", "woman", "person", for children "boy", "girl", "child"; None where the question does not arise.
        hair: "red hair", "curly hair", "white hair", "bald", or "".
        right: whether it was turned to face right.
        family: its code points without tone, gender, hair and direction, the same for all of a family.
    """

    code: str
    name: str
    head: str
    details: tuple[str, ...]
    group: str
    subgroup: str
    tones: tuple[str, ...]
    gender: str | None
    hair: str
    right: bool
    family: str

    @property
    def tone(self) -> str | None:
        """The skin tone; "" for the yellow default; None where two tones meet."""
        return (self.tones or ("",))[0] if len(set(self.tones)) < 2 else None


def read_emoji(rows: list[dict]) -> dict[str, Emoji]:
    """Emoji of Unicode by code, from the rows of openmoji.json; components (a skin tone alone) and openmoji's own are left out."""
    rows_by_code = {
        plain_code(row["hexcode"]): row
        for row in rows
        if row.get("group") != "component" and not str(row.get("group", "extras")).startswith("extras")
    }
    signed = {family_code(code.split("-")) for code in rows_by_code if any(point in SIGNS for point in code.split("-")[1:])}
    return {code: _emoji(code, rows_by_code[code], signed) for code in sorted(rows_by_code)}


def family_code(points: list[str]) -> str:
    """Code points without skin tone, gender, hair component and direction."""
    if points[-2:] == RIGHT and len(points) > 2:
        points = points[:-2]
    base_points = [
        "1f9d1" if point in PEOPLE else point
        for index, point in enumerate(points)
        if point not in TONES and point not in HAIR and point != "200d" and not (index and point in SIGNS)
    ]
    name = "-".join(base_points)
    return IRREGULAR[name][0] if name in IRREGULAR else TOGETHER.get(name, name)


def _emoji(code: str, row: dict, signed: set[str]) -> Emoji:
    points = code.split("-")
    family = family_code(points)
    head, _, suffix = row["annotation"].partition(": ")
    features = suffix.split(", ") if row["group"] != "flags" else [suffix]
    other_features = ("", *HAIR.values(), "facing right")
    details = tuple(feature for feature in features if not feature.endswith("skin tone") and feature not in other_features)
    return Emoji(
        code=code,
        name=row["annotation"],
        head=head,
        details=details,
        group=row["group"],
        subgroup=row.get("subgroups", ""),
        tones=tuple(TONES[point] for point in points if point in TONES),
        gender=_gender(points, family, signed),
        hair=next((HAIR[point] for point in points if point in HAIR), ""),
        right=points[-2:] == RIGHT and len(points) > 2,
        family=family,
    )


def _gender(points: list[str], family: str, signed: set[str]) -> str | None:
    if points[0] in IRREGULAR and set(points[1:]) <= set(TONES):
        return IRREGULAR[points[0]][1]
    for point in points[1:]:
        if point in SIGNS:
            return SIGNS[point]
    people = [point for point in points if point in PEOPLE]
    if len(people) == 1:
        return PEOPLE[people[0]]
    return "person" if not people and family in signed else None
