"""The npm packages that the drawings and names come from: fetching them, and reading what is needed out of their archives."""

import json
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dim_jax.errors import InputError, check


@dataclass(frozen=True)
class Package:
    """A package by name and exact version: another version may draw otherwise, and the data set would be another."""

    name: str
    version: str

    @property
    def archive(self) -> str:
        """What `npm pack` calls the archive."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


@dataclass(frozen=True)
class DrawingSet(Package):
    """A package of drawings, with the name of its hand in words, how it looks, and whose it is under which licence."""

    title: str
    look: str
    author: str
    licence: str
    kind: str = "emoji"  # what its drawings are called in texts


SETS = {
    "noto": DrawingSet("@iconify-json/noto", "1.2.9", "Noto", "soft gradients and round shapes", "Google", "Apache-2.0"),
    "twemoji": DrawingSet(
        "@iconify-json/twemoji", "1.2.5", "Twemoji", "flat shapes in a few plain colours", "Twitter and contributors", "CC-BY-4.0"
    ),
    "fluent_flat": DrawingSet(
        "@iconify-json/fluent-emoji-flat", "1.2.6", "Fluent flat", "bold flat shapes in bright colours", "Microsoft", "MIT"
    ),
    "fluent_3d": DrawingSet(
        "@lobehub/fluent-emoji-3d", "1.1.0", "Fluent 3D", "glossy shaded solids", "Microsoft, packaged by LobeHub", "MIT"
    ),
}  # fmt: skip
# Older drawings, for more pairs of what is not held out; their packages name emoji as that of Noto does.
OLDER_SETS = {
    "noto_v1": DrawingSet("@iconify-json/noto-v1", "1.2.5", "Noto Blob", "soft blobs with thick outlines", "Google", "Apache-2.0"),
    "emojione": DrawingSet("@iconify-json/emojione", "1.2.3", "Emoji One", "flat shapes with soft shadows", "EmojiTwo", "CC-BY-4.0"),
}
# Icons of what some emoji show (`icons.py`).
ICONS = {
    "flag_icons": DrawingSet(
        "@iconify-json/flag", "1.2.12", "Flag Icons", "plain cloths with square corners", "Panayiotis Lipiridis", "MIT", "icon"
    ),
    "flagpack": DrawingSet("@iconify-json/flagpack", "1.2.8", "Flagpack", "plain cloths in muted colours", "Yummygum", "MIT", "icon"),
    "coreui": DrawingSet("@iconify-json/cif", "1.2.7", "CoreUI", "plain cloths in strong colours", "creativeLabs", "CC0-1.0", "icon"),
    "circle_flags": DrawingSet("@iconify-json/circle-flags", "1.2.11", "Circle Flags", "round cloths", "HatScripts", "MIT", "icon"),
    "material": DrawingSet("@iconify-json/mdi", "1.2.3", "Material", "bold simple shapes", "Pictogrammers", "Apache-2.0", "icon"),
    "tabler": DrawingSet("@iconify-json/tabler", "1.2.41", "Tabler", "thin lines with round ends", "Paweł Kuna", "MIT", "icon"),
    "phosphor": DrawingSet("@iconify-json/ph", "1.2.2", "Phosphor", "bold lines with round ends", "Phosphor Icons", "MIT", "icon"),
    "lucide": DrawingSet("@iconify-json/lucide", "1.2.137", "Lucide", "even lines with round ends", "Lucide Contributors", "ISC", "icon"),
    "mingcute": DrawingSet("@iconify-json/mingcute", "1.2.8", "MingCute", "soft filled shapes", "MingCute Design", "Apache-2.0", "icon"),
    "awesome": DrawingSet("@iconify-json/fa6-solid", "1.2.4", "Font Awesome", "solid round shapes", "Dave Gandy", "CC-BY-4.0", "icon"),
    "bootstrap": DrawingSet("@iconify-json/bi", "1.2.7", "Bootstrap", "small neat shapes", "The Bootstrap Authors", "MIT", "icon"),
    "weather": DrawingSet("@iconify-json/wi", "1.2.1", "Weather", "flat shapes in one colour", "Erik Flowers", "OFL-1.1", "icon"),
    "game_icons": DrawingSet(
        "@iconify-json/game-icons", "1.2.4", "Game Icons", "detailed silhouettes", "Game Icons and contributors", "CC-BY-3.0", "icon"
    ),
    "icon_park": DrawingSet(
        "@iconify-json/icon-park", "1.2.4", "IconPark", "black outlines filled with blue", "ByteDance", "Apache-2.0", "icon"
    ),
}  # fmt: skip
# Clocks of every half hour, which no package has.
DIALS = {
    "dials": DrawingSet("", "", "Dial", "a white face with a rim and two thin hands", "dim_jax", "Apache-2.0", "icon"),
    "bold_dials": DrawingSet("", "", "Bold Dial", "a white face with a broad rim and two broad hands", "dim_jax", "Apache-2.0", "icon"),
}
HANDS = SETS | OLDER_SETS | ICONS | DIALS
NAMES = Package("openmoji", "17.0.0")  # only the names are read; its drawings are CC-BY-SA-4.0


def packages_of(sets: Iterable[str]) -> tuple[Package, ...]:
    """The packages that hold the drawings of sets, and the names."""
    named = {"noto"} if set(sets) & OLDER_SETS.keys() else set()
    return (*(HANDS[name] for name in dict.fromkeys((*sets, *named))), NAMES)


@dataclass(frozen=True)
class Drawing:
    """A drawing as its package has it: the text of an SVG, or the bytes of a WebP. `code` is as in `plain_code`."""

    code: str
    data: str | bytes


def fetch(folder: Path, packages: Iterable[Package]) -> None:
    """Put the archives of packages into a folder, through npm. Raises InputError if npm is not installed, or does not get a package."""
    npm = shutil.which("npm")
    if npm is None:
        names = " ".join(package.archive for package in packages)
        raise InputError(f"The packages come through npm, which is not installed. Install it, or give a folder with {names} (--packages).")
    specs = [f"{package.name}@{package.version}" for package in packages]
    result = subprocess.run(
        [npm, "pack", "--silent", "--pack-destination", str(folder), *specs], capture_output=True, text=True, check=False, cwd=folder
    )
    if result.returncode:
        reason = " ".join(result.stderr.split())[-300:] or f"exit code {result.returncode}"
        raise InputError(f"npm pack {' '.join(specs)} failed: {reason}. Mend that, or give a folder with the archives (--packages).")


@contextmanager
def open_archives(folder: Path | None, packages: Iterable[Package]) -> Iterator[Path]:
    """The folder with the archives of packages: the given one, or, without one, a folder for the time being to which they are fetched.

    Raises:
        InputError: there is no such folder, or as in `fetch`.
    """
    if folder is not None:
        check(folder.is_dir(), f"{folder}: no such folder. Give the one that holds the packages' .tgz files.")
        yield folder
        return
    with tempfile.TemporaryDirectory() as scratch:
        fetch(Path(scratch), packages)
        yield Path(scratch)


def plain_code(code: str) -> str:
    """Code points as one name for all packages: lower case, at least four digits, without the variation selector fe0f.

    Flags of regions end with a mark (e007f) that some packages leave out; it is left out everywhere.
    """
    points = code.lower().replace("_", "-").split("-")
    return "-".join(point.zfill(4) for point in points if point not in ("fe0f", "e007f"))


def read_names(folder: Path) -> list[dict]:
    """What `NAMES` knows of every emoji, as it stands in its file.

    Raises:
        InputError: the archive or the file in it is missing or damaged.
    """
    rows = _json(folder, NAMES, "data/openmoji.json")
    if not (isinstance(rows, list) and all(isinstance(row, dict) and "hexcode" in row and "annotation" in row for row in rows)):
        raise InputError(f"{folder / NAMES.archive}: data/openmoji.json is not a list of emoji. Fetch the package again.")
    return rows


def read_drawings(folder: Path, name: str) -> list[Drawing]:
    """The drawings of a set, one for each code, in the order of codes.

    Raises:
        InputError: the archive or a file in it is missing or damaged.
    """
    package = HANDS[name]
    files = _webps(folder, package) if name == "fluent_3d" else _svgs(folder, package)
    drawings: dict[str, Drawing] = {}
    for code, data in sorted(files):
        drawings.setdefault(plain_code(code), Drawing(plain_code(code), data))
    if not drawings:
        raise InputError(f"{folder / package.archive}: no drawing in it. Fetch the package again.")
    return [drawings[code] for code in sorted(drawings)]


def _webps(folder: Path, package: Package) -> Iterator[tuple[str, bytes]]:
    for path, data in _files(folder, package):
        if path.parent.name == "assets" and path.suffix == ".webp":
            yield path.stem, data


def _svgs(folder: Path, package: Package) -> Iterator[tuple[str, str]]:
    """The drawings that chars.json names an icon for, by code. A package of older drawings has no such file, and not every icon."""
    icons, older = Icons(folder, package), package in OLDER_SETS.values()
    names = _json(folder, SETS["noto"] if older else package, "chars.json")
    return ((code, icons.svg(name)) for code, name in names.items() if not older or name in icons)


class Icons:
    """A package in Iconify's form: icons.json has the SVG body of each icon, maybe by way of an alias.

    Raises:
        InputError: the archive or the file in it is missing or damaged.
    """

    def __init__(self, folder: Path, package: Package):
        self._archive, self._icons = folder / package.archive, _json(folder, package, "icons.json")
        if not isinstance(self._icons, dict):
            raise InputError(f"{self._archive}: icons.json is not in Iconify's form. Fetch the package again.")

    def __contains__(self, name: str) -> bool:
        return any(name in self._icons.get(part, {}) for part in ("icons", "aliases"))

    def svg(self, name: str) -> str:
        """An icon as an SVG of its own. Raises InputError if there is no such icon, or a damaged one."""
        try:
            icon = self._icon(name)
            left, top, width, height = (icon.get(key, self._icons.get(key, usual)) for key, usual in BOX)
            body = icon["body"]
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{self._archive}: icon {name!r} is not in Iconify's form. Fetch the package again.") from error
        if icon.get("hFlip"):
            body = f'<g transform="translate({2 * left + width} 0) scale(-1 1)">{body}</g>'
        space = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        return f'<svg {space} viewBox="{left} {top} {width} {height}" width="{width}" height="{height}">{body}</svg>'

    def _icon(self, name: str) -> dict:
        """An icon; an alias is its parent with some entries replaced."""
        if name in self._icons["icons"]:
            return self._icons["icons"][name]
        alias = self._icons["aliases"][name]
        return {**self._icon(alias["parent"]), **alias}


BOX = (("left", 0), ("top", 0), ("width", 16), ("height", 16))  # Iconify's defaults


def _json(folder: Path, package: Package, name: str):
    for path, data in _files(folder, package):
        if str(path) == name:
            try:
                return json.loads(data)
            except ValueError as error:
                raise InputError(f"{folder / package.archive}: {name} is damaged ({error}). Fetch the package again.") from error
    raise InputError(f"{folder / package.archive}: no {name} in it. Fetch the package again.")


def _files(folder: Path, package: Package) -> Iterator[tuple[PurePosixPath, bytes]]:
    """The files of an archive in its order, by their path inside the package. Nothing is unpacked to disk."""
    path = folder / package.archive
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                file = archive.extractfile(member) if member.isfile() else None
                if file is not None:
                    yield PurePosixPath(*PurePosixPath(member.name).parts[1:]), file.read()
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such archive. Make it with: npm pack {package.name}@{package.version}") from error
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise InputError(f"{path}: damaged ({error}). Fetch the package again.") from error
