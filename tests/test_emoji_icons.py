"""`dim build-data icons`: what emoji show, drawn by other hands: every rule, colours that stay, the same bytes twice, one error."""

import json
import os
import re
import shutil
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from dim_jax.datasets.emoji import icon_tables, icon_things, tables
from dim_jax.datasets.emoji.icon_names import COLOURS, FACE_RULES, LIGHT, SKIN
from dim_jax.datasets.emoji.icons import NIGHT
from dim_jax.datasets.emoji.names import TONES
from dim_jax.datasets.emoji.packages import DIALS, HANDS, ICONS, NAMES
from dim_jax.datasets.layouts.pairs import decode_webp, read_pairs, read_pictures
from tests.emoji_fixtures import icon_archives, write
from tests.painter_fixtures import build_data, dim, one_error

pytest.importorskip("array_record")
pytest.importorskip("resvg_py")


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> Path:
    return icon_archives(tmp_path_factory.mktemp("packages"))


@pytest.fixture(scope="module")
def built(packages, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "icons"
    build_data("icons", folder, "--packages", str(packages))
    return folder


@pytest.fixture(scope="module")
def pictures(built):
    return read_pictures(built)


@pytest.fixture(scope="module")
def pairs(built):
    return [pair for split in ("train", "test") for pair in read_pairs(built, split)]


@cache
def main_colour(webp: bytes) -> str:
    """The colour of most pixels that are not white, as #rrggbb."""
    counts = Counter(map(tuple, np.asarray(decode_webp(webp)).reshape(-1, 3).tolist()))
    del counts[255, 255, 255]
    return "#{:02x}{:02x}{:02x}".format(*counts.most_common(1)[0][0])


def test_every_rule_has_pairs_of_one_hand(built, pictures, pairs):
    counts = json.loads((built / "statistics.json").read_text())["pairs"]
    faces = {"expression", "accessory_on", "accessory_off"}
    assert {pair.rule for pair in pairs} == {"flag", "keycap", "zodiac", "arrow", "moon", "clock", "hand_direction", "state"} | faces
    assert Counter(pair.rule for pair in pairs) == Counter(counts["train"]) + Counter(counts["test"])
    for pair in pairs:
        source, target = pictures[pair.source], pictures[pair.target]
        assert (source.set, source.split) == (target.set, target.split)
        assert source.webp != target.webp
    assert {pictures[pair.source].set for pair in pairs if pair.rule == "flag"} == {"flag_icons", "flagpack"}  # coreui has one alone


def test_what_is_shown_follows_from_the_code(pictures, pairs):
    names = {**tables.KEYCAPS, **tables.ZODIAC, **tables.MOONS, **tables.ARROWS, **tables.CLOCKS}
    for pair in pairs:
        code = pictures[pair.target].code
        bare = next((code.removesuffix(f"-{word}") for word in COLOURS if code.endswith(f"-{word}")), code)
        if bare in names:
            assert any(re.search(rf"(?<!\w){re.escape(names[bare])}(?!\w)", text) for text in pair.instructions), (code, pair.instructions)
        assert HANDS[pictures[pair.target].set].title in pair.blueprint
        assert "emoji" not in pair.blueprint


def test_an_edit_keeps_the_colour(pictures, pairs):
    seen = set()
    for pair in pairs:
        before, after = main_colour(pictures[pair.source].webp), main_colour(pictures[pair.target].webp)
        if pair.rule in ("keycap", "zodiac", "arrow", "clock", "state"):
            if pictures[pair.source].set in DIALS:  # of which the face is the most, and the rim has the colour
                continue
            word = pictures[pair.source].code.rpartition("-")[2]
            assert before == after == COLOURS[word]
            seen.add(word)
        elif pair.rule == "moon":
            assert {before, after} <= {LIGHT, NIGHT}
        elif pair.rule == "hand_direction":
            tone = next((point for point in TONES if f"-{point}" in pictures[pair.source].code), "")
            assert before == after == SKIN[tone]
        elif pair.rule in FACE_RULES:
            assert {before, after} <= {SKIN[""], NIGHT}
    assert seen == set(COLOURS)


def test_the_hands_of_a_dial_show_the_time(pictures):
    seen = set()
    for picture in (picture for picture in pictures if picture.set in DIALS):
        time = tables.CLOCKS[picture.code.partition("-")[0]]
        hour = int(re.findall(r"\d+", time)[0])
        half = time.startswith("half")
        pixels = np.asarray(decode_webp(picture.webp)).astype(int)
        for angle, length in ((30 * hour + 15 * half, 10), (180 * half, 17)):  # of 64 pixels
            x, y = (round(32 + length * way(np.deg2rad(angle))) for way in (np.sin, lambda angle: -np.cos(angle)))
            assert pixels[y - 1 : y + 2, x - 1 : x + 2].min() < 130, (picture.set, time)
        seen.add(time)
    assert seen == set(tables.CLOCKS.values())


def test_holes_of_a_face_are_dark(pictures):
    """The glyph of a face is a disc with holes, which would be as white as the ground behind."""
    faces = [picture for picture in pictures if picture.code in ("1f642", "1f60e")]
    assert {picture.set for picture in faces} == {"awesome", "material", "tabler"}
    for picture in faces:
        colours = set(map(tuple, np.asarray(decode_webp(picture.webp)).reshape(-1, 3).tolist()))
        assert tuple(bytes.fromhex(NIGHT[1:])) in colours, picture.key


def test_every_state_of_a_set_has_its_other_state_there():
    for names in icon_tables.STATES.values():
        whole = [set(state[:2]) for state in tables.STATES if set(state[:2]) <= names.keys()]
        assert set().union(*whole) == names.keys()


def test_things_and_gestures_have_captions_alone(pictures, pairs):
    found = {(picture.set, picture.name): picture for picture in pictures}
    names = ("trumpet", "ear of corn", "cricket", "cricket game", "sheaf of rice")
    things = {(set_, name) for set_, name in found if name in names}
    assert things == {
        ("material", "trumpet"), ("material", "ear of corn"), ("material", "sheaf of rice"), ("phosphor", "ear of corn"),
        ("material", "cricket game"),  # not the insect, which Material's "cricket" is not
        ("game_icons", "trumpet"), ("game_icons", "ear of corn"), ("icon_park", "trumpet"),
    }  # fmt: skip
    for set_, name in things - {("icon_park", "trumpet")}:
        assert main_colour(found[set_, name].webp) in COLOURS.values()
    thumbs = {
        picture.code: main_colour(picture.webp) for picture in pictures if picture.set == "game_icons" and "thumbs up" in picture.name
    }
    assert thumbs == {"1f44d": SKIN[""], "1f44d-1f3fb": SKIN["1f3fb"]}
    edited = {number for pair in pairs for number in (pair.source, pair.target)}
    assert not {pictures[number].name for number in edited} & set(names)


def test_every_picture_has_a_key_of_its_own(pictures):
    assert len({(picture.set, picture.code) for picture in pictures}) == len(pictures)


def test_every_name_of_a_thing_is_one_word_for_the_sets():
    for name, words in icon_things.NAMES.items():
        assert words.split() == list(dict.fromkeys(words.split())), name
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*( [a-z0-9]+(-[a-z0-9]+)*)*", words), name


def test_captions_name_the_hand(pictures):
    for picture in pictures:
        assert all(HANDS[picture.set].title in caption and "emoji" not in caption for caption in picture.captions)


def test_beside_the_data_lie_a_card_and_a_sheet(built):
    card = (built / "README.md").read_text()
    assert all(item.licence in card and item.name in card for item in ICONS.values())
    assert (built / "sheet.png").stat().st_size > 1000


def test_another_side(packages, pictures, tmp_path):
    build_data("icons", tmp_path / "large", "--side", "128", "--packages", str(packages))
    large = read_pictures(tmp_path / "large")
    assert [picture.key for picture in large] == [picture.key for picture in pictures]
    assert decode_webp(large[0].webp).size == (128, 128)


def test_the_same_archives_give_the_same_bytes(packages, built, tmp_path):
    build_data("icons", tmp_path / "again", "--packages", str(packages))
    for path in built.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


@pytest.mark.parametrize(
    ("archive", "files", "message"),
    [
        (ICONS["tabler"].archive, None, "no such archive. Make it with: npm pack @iconify-json/tabler@"),
        (NAMES.archive, {"index.js": ""}, "no data/openmoji.json in it"),
        (ICONS["material"].archive, {"icons.json": "{half"}, "icons.json is damaged"),
        (ICONS["material"].archive, {"icons.json": '{"icons": {"numeric-1": {}}}'}, "icon 'numeric-1' is not in Iconify's form"),
        (ICONS["material"].archive, {"icons.json": "[]"}, "icons.json is not in Iconify's form"),
    ],
)
def test_a_wrong_archive_is_named_and_nothing_is_left(packages, tmp_path, archive, files, message):
    copy = shutil.copytree(packages, tmp_path / "copy")
    (copy / archive).unlink()
    if files is not None:
        write(copy / archive, files)
    text = one_error(dim("build-data", "icons", str(tmp_path / "out"), "--packages", str(copy)))
    assert archive in text
    assert message in text
    assert os.listdir(tmp_path) == ["copy"]


def test_a_missing_folder_of_archives_is_named(tmp_path):
    assert "nowhere: no such folder" in one_error(
        dim("build-data", "icons", str(tmp_path / "out"), "--packages", str(tmp_path / "nowhere"))
    )
