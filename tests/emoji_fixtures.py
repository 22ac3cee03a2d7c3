"""Small emoji packages in the form of the real ones, drawn here: every rule finds something in them."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

from PIL import Image, ImageDraw

from dim_jax.datasets.emoji import tables
from dim_jax.datasets.emoji.names import HAIR, PEOPLE, TONES
from dim_jax.datasets.emoji.packages import HANDS, ICONS, NAMES, OLDER_SETS, SETS

FEW = 40  # emoji that sets other than noto draw


def row(code: str, name: str, group: str = "symbols", subgroup: str = "other-symbol") -> dict:
    """A row of openmoji.json."""
    return {"hexcode": code.upper(), "annotation": name, "group": group, "subgroups": subgroup, "skintone": ""}


def toned(code: str, name: str, subgroup: str, *features: str, tones: int) -> list[dict]:
    """An emoji of people in the default and in so many skin tones, which follow the first code point."""
    first, *rest = code.split("-")
    found = [row(code, name + (f": {', '.join(features)}" if features else ""), "people-body", subgroup)]
    for point, tone in list(TONES.items())[:tones]:
        found.append(
            row("-".join([first, point, *rest]), f"{name}: {', '.join([f'{tone} skin tone', *features])}", "people-body", subgroup)
        )
    return found


def rows(*, tones: int = len(TONES), flags: int = 26) -> list[dict]:
    """Emoji of every rule, and some that must not be taken: a component, one of openmoji's own."""
    found = [row("1f3fb", "light skin tone", "component", "skin-tone"), row("e000", "brand", "extras-openmoji", "brand")]
    for thing, colours in tables.COLOURS.items():
        found += [row(code, f"{colour} {thing}") for code, colour in colours.items()]
    for names, subgroup in ((tables.CLOCKS, "time"), (tables.MOONS, "sky-weather"), (tables.ARROWS, "arrow"), (tables.ZODIAC, "zodiac")):
        found += [row(code, name, "symbols", subgroup) for code, name in names.items()]
    found += [row(code.replace("-", "-fe0f-"), f"keycap: {key}", "symbols", "keycap") for code, key in tables.KEYCAPS.items()]
    for code, name in PEOPLE.items():
        found += toned(code, name, "person", tones=tones)
        for part, hair in HAIR.items():
            found += toned(f"{code}-200d-{part}", name, "person", hair, tones=tones)
        for point, job in (("2695-fe0f", "health worker"), ("1f33e", "farmer"), ("1f680", "astronaut"), ("1f3a8", "artist")):
            found += toned(f"{code}-200d-{point}", job if name == "person" else f"{name} {job}", "person-role", tones=tones)
    for what, hands in tables.HANDS.items():
        for code, way in hands.items():
            found += toned(code, f"{what} {way}", "hand", tones=tones)
    for code, name in (("1f44d", "thumbs up"), ("1f44e", "thumbs down")):
        found += toned(code, name, "hand-fingers-closed", tones=tones)
    for sign, person in (("", "person"), ("-200d-2642", "man"), ("-200d-2640", "woman")):
        found += toned(f"1f6b6{sign}", f"{person} walking", "person-activity", tones=tones)
        found += toned(f"1f6b6{sign}-200d-27a1", f"{person} walking", "person-activity", "facing right", tones=tones)
    faces = dict.fromkeys((*tables.PLAIN_FACES, *tables.ACCESSORIES, *tables.CATS))
    found += [row(code, f"face {number}", "smileys-emotion", "face-smiling") for number, code in enumerate(faces)]
    found += [row(code, f"cat {number}", "smileys-emotion", "cat-face") for number, code in enumerate(tables.CATS.values())]
    for number, (whole, face) in enumerate(tables.ANIMALS.items()):
        found += [row(whole, f"animal {number}", "animals-nature"), row(face, f"animal {number} face", "animals-nature")]
    found += [row(f"1f1e6-{0x1F1E6 + letter:x}", f"flag: Land {letter}", "flags", "country-flag") for letter in range(flags)]
    known = {entry["hexcode"].lower() for entry in found}
    states = dict.fromkeys(code for state in tables.STATES for code in state[:2])
    return found + [row(code, f"thing {number}") for number, code in enumerate(states) if code not in known]


def body(text: str) -> str:
    """A drawing that follows from a text: two shapes in two colours, one of them by a gradient."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    x, y, r = (int(digest[i : i + 2], 16) % 12 for i in (0, 2, 4))
    return (
        f'<linearGradient id="g"><stop stop-color="#{digest[6:12]}"/><stop offset="1" stop-color="#{digest[12:18]}"/></linearGradient>'
        f'<rect x="{x}" y="{y}" width="{12 + r}" height="16" fill="url(#g)"/>'
        f'<circle cx="18" cy="20" r="{4 + r / 3}" fill="#{digest[18:24]}"/>'
    )


def archives(folder: Path, *, few: int = FEW, older: bool = False, **numbers: int) -> Path:
    """Write the five archives into a folder, with so many emoji of sets other than noto; `older`: those of older sets, and noto's.

    `numbers`: of `rows`.
    """
    folder.mkdir(exist_ok=True)
    entries = rows(**numbers)
    codes = [entry["hexcode"].lower() for entry in entries]
    write(folder / NAMES.archive, {"data/openmoji.json": json.dumps(entries, ensure_ascii=False)})
    for name in ("noto", *OLDER_SETS) if older else ("noto", "twemoji", "fluent_flat"):
        drawn = codes if name == "noto" else codes[:few]
        # Flags of Land 0 and Land 1 look the same in noto, and the second is an alias of the first; Land 2 is Land 0 turned around.
        same = {"1f1e6-1f1e7": {"parent": "1f1e6-1f1e6"}, "1f1e6-1f1e8": {"parent": "1f1e6-1f1e6", "hFlip": True}}
        icons = {code: {"body": body(name + code)} for code in drawn if code not in same}
        aliases = {code: alias for code, alias in same.items() if alias["parent"] in icons}
        files = {
            "icons.json": json.dumps({"prefix": name, "width": 32, "height": 32, "icons": icons, "aliases": aliases}),
            "chars.json": json.dumps({code: code for code in drawn}),
        }
        if name in OLDER_SETS:
            del files["chars.json"]
        write(folder / HANDS[name].archive, files)
    if not older:
        write(folder / SETS["fluent_3d"].archive, {f"assets/{code}.webp": ball(code) for code in codes[:few]})
    return folder


def icon_archives(folder: Path) -> Path:
    """Write the archives of the icons into a folder, with the names of emoji: flags of three lands in two sets, and glyphs of all signs."""
    things = [
        row("1f3ba", "trumpet", "objects", "musical-instrument"), row("1f33d", "ear of corn", "food-drink", "food-vegetable"),
        row("1f997", "cricket", "animals-nature", "animal-bug"), row("1f3cf", "cricket game", "activities", "sport"),
        row("1f33e", "sheaf of rice", "animals-nature", "plant-other"),
    ]  # fmt: skip
    write(folder / NAMES.archive, {"data/openmoji.json": json.dumps([*rows(tones=1, flags=3), *things], ensure_ascii=False)})
    ways = [first + second for first in ("up", "down", "top", "bottom", "left", "right") for second in ("", "-left", "-right")]
    phases = [f"{light}-{form}" for light in ("waxing", "waning") for form in ("crescent", "gibbous")]
    digits = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
    glyphs = {
        "flag_icons": [f"a{letter}-4x3" for letter in "abc"],
        "flagpack": ["aa", "ab", "ac"],
        "coreui": ["aa"],
        "circle_flags": [],
        "material": [
            "pound", "asterisk", *(f"numeric-{number}" for number in range(11)),
            *(f"zodiac-{name.lower()}" for name in tables.ZODIAC.values()),
            *(f"arrow-{way}-thick" for way in ways), *(f"clock-time-{hour}" for hour in digits[1:]),
            *(f"moon-{phase}" for phase in (*phases, "new", "full", "first-quarter", "last-quarter")),
            *(f"hand-pointing-{way}" for way in ("up", "down", "left", "right")), "emoticon", "emoticon-cry", "emoticon-cool",
            "thumb-up", "trumpet", "corn", "cricket", "rice", "barley",
        ],
        "tabler": [
            "hash", "number-1", "zodiac-aries", "zodiac-leo", "arrow-up", "arrow-down", "clock-hour-1-filled", "clock-hour-2-filled",
            "mood-smile-filled",
        ],
        "awesome": [
            "1", "2", "hand-point-up", "hand-point-left", "face-smile", "face-sad-tear", "face-grin-stars", "thumbs-up", "thumbs-down",
        ],
        "bootstrap": ["1-square-fill", "3-square-fill", "arrow-up-square-fill", "arrow-down-square-fill", "mailbox2", "mailbox2-flag"],
        "game_icons": ["trumpet", "corn", "thumb-up"],
        "icon_park": ["trumpet"],
        "phosphor": ["trumpet", "corn-fill", "number-one-bold", "asterisk-bold", "arrow-up-bold", "arrow-up-left-bold"],
        "lucide": ["zodiac-aries", "zodiac-virgo"],
        "mingcute": ["aries-fill", "taurus-fill"],
        "weather": [*(f"moon-{phase}-3" for phase in phases), "moon-new", "moon-full", "moon-first-quarter", "moon-third-quarter"],
    }  # fmt: skip
    for name, icons in glyphs.items():
        bodies = {icon: {"body": body(name + icon) if "flag" in name or name == "coreui" else glyph(icon)} for icon in icons}
        write(folder / ICONS[name].archive, {"icons.json": json.dumps({"width": 24, "height": 24, "icons": bodies})})
    return folder


def glyph(text: str) -> str:
    """A shape that follows from a text, in the colour of what is around it."""
    x, y, r = (3 + number % 6 for number in hashlib.sha256(text.encode()).digest()[:3])
    return f'<path fill="currentColor" d="M{x} {y}h{r}v{12 + r}h-{r}z"/>'


def ball(code: str) -> bytes:
    """A picture of 256 pixels with a transparent ground."""
    digest = hashlib.sha256(code.encode()).digest()
    picture = Image.new("RGBA", (256, 256), (0, 0, 0, 0))
    ImageDraw.Draw(picture).ellipse((20 + digest[0] % 60, 30, 220, 200 + digest[1] % 40), fill=(*digest[2:5], 255))
    file = io.BytesIO()
    picture.save(file, "WEBP", lossless=True)
    return file.getvalue()


def write(path: Path, files: dict[str, str | bytes]) -> None:
    """An archive as npm makes it: everything below package/."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
