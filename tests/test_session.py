"""Editing in rounds: what goes on from what, what is taken back, who is asked, what is kept."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dim_jax.batching import Source, edit_request
from dim_jax.compositing import Frame, changed_latents
from dim_jax.designer.clients import Request, Response
from dim_jax.edit_result import read_metadata
from dim_jax.errors import InputError
from dim_jax.pipeline import EditPipeline
from dim_jax.processing.pictures import autoencoder_pixels_uint8
from dim_jax.session import EditSession
from dim_jax.settings import Settings
from tests.designer_answers import GOOD
from tests.painter_fixtures import QUICK, largest_difference, painter, picture

FIRST = picture(40, 40, 1)


def session(**changes) -> EditSession:
    return EditSession(EditPipeline(painter()), FIRST, **{"settings": QUICK, **changes})


def by_hand(prompt: str, source: Image.Image | Source, seed: int = 0):
    return EditPipeline(painter())([prompt], [source], seeds=[seed], settings=QUICK)[0]


class Writer:
    """A designer that writes the same blueprint every time, and keeps what it was asked."""

    name, max_tokens = "writer", 0

    def __init__(self, text: str = GOOD):
        self.text, self.asked = text, list[Request]()

    async def complete(self, question: Request) -> Response:
        self.asked.append(question)
        return Response(self.text)

    async def close(self) -> None:
        pass


def test_round_edits_latents_of_previous_round():
    ours = session()
    first, second = ours.edit("red", seed=1), ours.edit("a hat on it", seed=2)
    alone = by_hand("red", FIRST, 1)
    assert largest_difference(first.image, alone.image) == 0
    assert largest_difference(second.image, by_hand("a hat on it", Source(alone.image, alone.latents), 2).image) == 0
    assert largest_difference(second.image, by_hand("a hat on it", alone.image, 2).image) > 1, "the picture was encoded again"
    assert second.source is first.image
    assert second.earlier == (first,)
    assert ours.rounds == (first, second)


def test_image_guidance_holds_in_every_round():
    settings = replace(QUICK, image_guidance_scale=1.5)
    ours = session(settings=settings)
    first, second = ours.edit("red", seed=1), ours.edit("cut", seed=2)
    (alone,) = EditPipeline(painter())(["cut"], [Source(first.image, first.latents)], seeds=[2], settings=settings)
    assert largest_difference(second.image, alone.image) == 0
    assert largest_difference(second.image, by_hand("cut", Source(first.image, first.latents), 2).image) > 1


def test_undo_then_edit_again():
    ours = session()
    first = ours.edit("red")
    second = ours.edit("cut")
    assert ours.undo() is second
    assert ours.rounds == (first,)
    again = ours.edit("cut")
    assert largest_difference(again.image, second.image) == 0
    other = ours.edit("a hat on it")
    assert other.earlier == (first, again)
    for _ in range(3):
        ours.undo()
    with pytest.raises(InputError, match="no round to undo"):
        ours.undo()
    assert largest_difference(ours.edit("red").image, first.image) == 0


def test_session_branches_are_independent():
    ours = session()
    first = ours.edit("red")
    other = ours.branch()
    cut, hat = ours.edit("cut"), other.edit("a hat on it")
    assert (ours.rounds, other.rounds) == ((first, cut), (first, hat))
    assert largest_difference(cut.image, hat.image) > 1
    other.undo()
    other.undo()
    assert ours.rounds == (first, cut)


def test_a_failed_round_leaves_everything_as_it_was():
    ours = session()
    first = ours.edit("red")
    for wrong in (" ", "a long way to the sea, then on to the isle"):
        with pytest.raises(InputError):
            ours.edit(wrong)
    with pytest.raises(InputError, match="Seed"):
        ours.edit("cut", seed=2**31)
    assert ours.rounds == (first,)


def test_the_designer_sees_the_picture_of_each_round(tmp_path):
    file = tmp_path / "mine.jpg"
    FIRST.save(file)
    settings = Settings(num_steps=3, resolution=64, overflow="keep_last")
    writer = Writer()
    ours = session(designer=writer, settings=settings, file=file)
    first, second = ours.edit("Make it blue."), ours.edit("Add a hat.")
    assert [question.id for question in writer.asked] == ["mine", "mine.2"]
    assert [question.instruction for question in writer.asked] == ["Make it blue.", "Add a hat."]
    assert writer.asked[0].pictures[0].data == file.read_bytes()
    (tmp_path / "seen.png").write_bytes(writer.asked[1].pictures[0].data)
    with Image.open(tmp_path / "seen.png") as seen:
        assert seen.convert("RGB").tobytes() == first.image.tobytes()
    assert [(one.prompt, one.instruction, one.designer) for one in (first, second)] == [
        (GOOD, "Make it blue.", "writer"), (GOOD, "Add a hat.", "writer"),
    ]  # fmt: skip
    ready = ours.edit("Cut.", blueprint="cut", written_by="me")
    assert (ready.prompt, ready.instruction, ready.designer) == ("cut", "Cut.", "me")
    assert len(writer.asked) == 2


def test_a_picture_without_a_file_is_shown_too():
    writer = Writer("no blueprint")
    ours = session(designer=writer)
    with pytest.raises(InputError, match="writer wrote no blueprint for round-1"):
        ours.edit("Make it blue.")
    assert writer.asked[0].id == "picture"
    assert ours.rounds == ()


def test_all_rounds_are_in_the_file_and_paint_it_again(tmp_path):
    ours = session(keep_unchanged=True)
    for seed, prompt in enumerate(("red", "a hat on it", "cut")):
        ours.edit(prompt, seed=seed)
    ours.rounds[-1].save(tmp_path / "out.png")
    metadata = read_metadata(tmp_path / "out.png")
    rounds = [*metadata["earlier"], metadata]
    assert [(one["prompt"], one["seed"]) for one in rounds] == [("red", 0), ("a hat on it", 1), ("cut", 2)]
    assert all(0 <= one["changed"] <= 1 for one in rounds)
    again = session(keep_unchanged=True, settings=Settings(**rounds[0]["settings"]))
    for one in rounds:
        again.edit(one["prompt"], seed=one["seed"])
    with Image.open(tmp_path / "out.png") as saved:
        assert saved.tobytes() == again.rounds[-1].image.tobytes()


def test_keep_unchanged_copies_source_pixels(monkeypatch):
    """Random weights change everything, so the painter is given latents that differ in one corner only."""
    size = (64, 64)
    before = np.asarray(painter().encode([FIRST], size))[0]
    after = before.copy()
    after[:2, :2] += 3
    plain = EditPipeline(painter())(["red"], [FIRST], settings=QUICK)[0]
    assert painter().decode(after[None])[0].tobytes() != painter().decode(before[None])[0].tobytes()
    monkeypatch.setattr(painter(), "_paint", lambda *args, **options: jnp.asarray(after[None]))
    ours = session(keep_unchanged=True)
    painting = ours.edit("red")
    source = np.asarray(FIRST)
    same = (np.asarray(painting.image) == source).all(-1)
    assert painting.changed is not None
    assert 0 < painting.changed < 1
    assert same.mean() >= 1 - painting.changed > 0
    assert not same.all()
    # So are the latents, cell by cell, and the next round starts from them.
    kept = (painting.latents == before).all(-1)
    assert kept.any()
    assert not kept.all()
    np.testing.assert_array_equal(painting.latents[~kept], after[~kept])
    assert ours.source.latents is painting.latents
    # Without it, everything is as painted.
    bare = session().edit("red")
    assert bare.changed is None
    np.testing.assert_array_equal(bare.latents, after)
    assert plain.changed is None


@pytest.fixture(scope="module")
def masked():
    """A picture of an odd size, the left of which may change, and what became of it without and with its changes found."""
    source = picture(61, 67, 1)
    mask = Image.new("L", source.size)
    mask.paste(255, (0, 0, 30, 67))
    ours = [EditSession(EditPipeline(painter()), source, settings=QUICK, keep_unchanged=keep) for keep in (False, True)]
    for one in ours:
        one.edit("red", mask=mask, feather=6.0)
    return source, mask, ours


def test_a_mask_keeps_the_rest_as_it_was(masked):
    """In pixels to the bit at the picture's own size, in latents cell by cell."""
    source, mask, (ours, found) = masked
    painting = ours.rounds[0]
    outside = np.asarray(mask) == 0
    for one in (painting, found.rounds[0]):
        np.testing.assert_array_equal(np.asarray(one.image)[outside], np.asarray(source)[outside])
    assert (np.asarray(painting.image) != np.asarray(source)).any(-1)[~outside].mean() > 0.9
    assert painting.changed == pytest.approx(30 / 61, abs=0.01)
    assert 0 < found.rounds[0].changed <= painting.changed
    before = np.asarray(painter().encode([Frame.fit(source.size, (64, 64)).canvas(source)], (64, 64)))[0]
    kept = (painting.latents == before).all(-1)
    assert kept[:, 4:].all()
    assert not kept[:, :4].any()
    # The edit fades within 6 pixels of the rim.
    share = np.abs(np.asarray(painting.image, float) - np.asarray(source)).mean((0, 2))
    assert share[29] < share[24] / 2


def test_what_is_painted_fits_to_what_is_kept(masked):
    """The network saw the rest as it stays, at every step: what it painted is another picture than it paints without a mask."""
    source, _, (ours, _) = masked
    free = by_hand("red", source).latents
    assert np.abs(free[:, :3] - ours.rounds[0].latents[:, :3]).max() > 0.05


def test_masks_that_cannot_be_used(masked):
    ours = masked[2][0].branch()
    for size, message in (((8, 9), "mask is 8 x 9 pixels, but the picture 61 x 67"), ((61, 67), "black everywhere")):
        with pytest.raises(InputError, match=message):
            ours.edit("red", mask=Image.new("L", size))
    assert len(ours.rounds) == 1


def test_a_mask_is_cropped_as_its_picture_is():
    wide, mask = picture(80, 40, 1), Image.new("L", (80, 40))
    mask.paste(255, (0, 0, 40, 40))
    request = edit_request("red", Source(wide), 0, replace(QUICK, size=(32, 128)), 8, mask)
    np.testing.assert_array_equal(np.asarray(request.source.picture), autoencoder_pixels_uint8(wide, (32, 128)))
    assert request.opacity.shape == (32, 128)
    assert (request.opacity[:, :62] == 1).all()
    assert (request.opacity[:, 66:] == 0).all()
    assert request.canvas.tobytes() == request.source.picture.tobytes()


def test_keeping_what_is_unchanged_over_rounds(monkeypatch):
    """A painter that changes nothing gives back the first picture to the bit, however often: its latents are not worn either."""
    seen = []

    def paint(dim, condition, seeds, *, source, **options):
        seen.append(np.asarray(source))
        return source

    monkeypatch.setattr(painter(), "_paint", paint)
    ours = session(keep_unchanged=True)
    for _ in range(3):
        painting = ours.edit("red")
    np.testing.assert_array_equal(np.asarray(painting.image), np.asarray(FIRST))
    assert painting.changed == 0
    assert len(seen) == 3
    np.testing.assert_array_equal(seen[0], seen[2])
    assert not changed_latents(np.zeros((64, 64), np.float32), 8).any()
