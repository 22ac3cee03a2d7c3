"""A checkpoint says how it is meant to paint: settings.json is read, carried along by conversions, and yields to options."""

import json
from pathlib import Path

import pytest

from dim_jax.edit_result import read_metadata
from dim_jax.errors import InputError
from dim_jax.pipeline import EditPipeline, GeneratePipeline
from dim_jax.sampling import Sampler
from dim_jax.settings import CHECKPOINT_SETTINGS, Settings, read_settings
from dim_jax.weights import bundled
from dim_jax.weights.convert import convert
from tests.painter_fixtures import dim, edit, generate, largest_difference, one_error, painter, picture, tiny_checkpoint

NANO = {"num_steps": 2, "guidance_scale": 3, "image_guidance_scale": 1.5, "flow_shift": 1.0, "solver": "euler", "resolution": 64}
NANO |= {"guidance_start": 0.1, "guidance_stop": 0.9, "cache_interval": 2, "float8": True, "distilled": "none"}


@pytest.fixture(autouse=True)
def _place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture(40, 40, 1).save("in.png")


def nano(folder: str, **values) -> Path:
    """The tiny checkpoint with a settings.json."""
    checkpoint = tiny_checkpoint(Path(folder))
    (checkpoint / "settings.json").write_text(json.dumps(values))
    return checkpoint


# The file


def test_every_key():
    Path("settings.json").write_text(json.dumps(NANO))
    assert read_settings(Path("settings.json")) == Settings(
        num_steps=2, guidance_scale=3.0, image_guidance_scale=1.5, flow_shift=1.0, solver="euler", resolution=64,
        guidance_start=0.1, guidance_stop=0.9, cache_interval=2, float8=True, distilled="none",
    )  # fmt: skip
    assert NANO.keys() == CHECKPOINT_SETTINGS.keys(), "a key that this test does not know"


def test_keys_that_are_not_there_are_as_published():
    Path("settings.json").write_text('{"resolution": 64}')
    assert read_settings(Path("settings.json")) == Settings(resolution=64)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"steps": 3}', "unknown settings: steps"), ('{"batch_size": 3}', "unknown settings: batch_size"),
        ('{"size": [64, 64]}', "unknown settings: size"),
        ('{"num_steps": "3"}', "num_steps is '3'"), ('{"num_steps": 2.5}', "num_steps is 2.5"),
        ('{"num_steps": true}', "num_steps is True"),
        ('{"num_steps": 0}', "num_steps 0"),
        ('{"cache_interval": 0}', "cache_interval 0"), ('{"num_steps": 1001}', "num_steps 1001 must be 1 to 1000"),
        ('{"guidance_scale": 1e30}', "guidance_scale 1e+30"), ('{"flow_shift": 1e6}', "flow_shift 1000000.0"),
        ('{"resolution": 1000000000}', "more than the 134,217,728"), ('{"resolution": 100}', "resolution 100 is not a multiple of 32"),
        ('{"blueprint_from": "dreams"}', "blueprint_from is 'dreams'"),
        ('{"guidance_scale": [1]}', "guidance_scale is [1]"), ('{"flow_shift": 0}', "flow_shift 0.0"),
        ('{"flow_shift": NaN}', "flow_shift is nan"), ('{"solver": "heun"}', 'no solver "heun"'),
        ('{"resolution": 64.0}', "resolution is 64.0"),
        ('{"resolution": -64}', "resolution -64"), ("[64]", "not a JSON object"), ('{"resolution": ', "not a JSON file"),
    ],
)  # fmt: skip
def test_invalid_settings_files_are_refused(text, says):
    Path("settings.json").write_text(text)
    with pytest.raises(InputError) as caught:
        read_settings(Path("settings.json"), factor=32)
    assert str(caught.value).startswith("settings.json")
    assert says in str(caught.value)


# The painter and its pipelines


@pytest.fixture
def own(monkeypatch) -> Sampler:
    """The shared painter, as if its checkpoint had brought these settings."""
    monkeypatch.setattr(painter(), "settings", Settings(num_steps=2, guidance_scale=3.0, resolution=64))
    return painter()


def test_the_pipelines_paint_as_the_painter_is_meant_to(own):
    edited = EditPipeline(own)(["red"], [picture(40, 40)])[0]
    assert edited.settings == {
        "num_steps": 2, "guidance_scale": 3.0, "image_guidance_scale": 1.0, "flow_shift": 3.0, "solver": "dpm++2m", "resolution": 64,
        "size": None, "tile": None, "negative_prompt": None, "overflow": "error", "guidance_start": 0.0, "guidance_stop": 1.0,
        "cache_interval": 1, "float8": False, "distilled": "none",
    }  # fmt: skip
    painted = GeneratePipeline(own)(["red"])[0]
    assert painted.settings == edited.settings | {"size": (64, 64)}
    # What is given wins whole, and is what the picture says of itself.
    again = EditPipeline(own)(["red"], [picture(40, 40)], settings=Settings(num_steps=3, resolution=64))[0]
    assert (again.settings["num_steps"], again.settings["guidance_scale"]) == (3, 7.5)
    assert largest_difference(again.image, edited.image) > 1


def test_a_painter_without_a_file_is_as_published():
    assert painter().settings == Settings()


# The command


def test_the_command_needs_no_numbers_and_options_win():
    nano("nano", **NANO)
    assert dim(*edit(checkpoint="nano")) == (0, "wrote out.png\n")
    expected = NANO | {"size": None, "tile": None, "negative_prompt": None, "overflow": "error"}
    assert read_metadata("out.png")["settings"] == expected
    assert dim(*edit("--image-guidance-scale", "2", "--steps", "1", checkpoint="nano", output="nearer.png"))[0] == 0
    assert read_metadata("nearer.png")["settings"] == expected | {"num_steps": 1, "image_guidance_scale": 2.0}
    options = ("--steps", "1", "--guidance", "1", "--flow-shift", "2", "--solver", "dpm++2m", "--resolution", "32")
    assert dim(*generate(*options, checkpoint="nano", output="other.png"))[0] == 0
    changed = {"num_steps": 1, "guidance_scale": 1.0, "flow_shift": 2.0, "solver": "dpm++2m", "resolution": 32, "size": (32, 32)}
    assert read_metadata("other.png")["settings"] == expected | changed


def test_a_broken_file_is_one_error():
    nano("nano", guidance="much")
    assert "nano/settings.json: unknown settings: guidance." in one_error(dim(*edit(checkpoint="nano")))
    assert not Path("out.png").exists()


def test_conversions_carry_the_file_along(capsys):
    source = nano("nano", **NANO)
    written = (source / "settings.json").read_bytes()
    for to, here, there in (("orbax", "nano", "ours"), ("dim", "ours", "back"), ("dim", "nano", "same"), ("diffusers", "ours", "other")):
        convert(here, there, to)
        assert Path(there, "settings.json").read_bytes() == written
        assert 'settings: {"num_steps": 2' in capsys.readouterr().out
    assert Sampler.from_pretrained("ours").settings == Sampler.from_pretrained("back").settings == read_settings(source / "settings.json")
    convert("nano", "encoder", "qwen")
    assert not Path("encoder/settings.json").exists(), "an encoder alone does not paint"
    for text, says in (
        ("{", "is not a JSON file"), ('{"num_steps": 0}', "num_steps 0 must be 1 to 1000"), ('{"resolution": 65}', "not a multiple of"),
    ):  # fmt: skip
        (source / "settings.json").write_text(text)
        with pytest.raises(InputError, match=rf"nano/settings\.json: .*{says}"):
            convert("nano", "never", "orbax")
        assert not Path("never").exists()


# The bundled checkpoint

LINE = "using the bundled nano model, 64 px emoji; --checkpoint takes another\n"


def test_without_a_checkpoint_the_bundled_one_paints(monkeypatch):
    monkeypatch.setattr(bundled, "NANO", nano("inside", **NANO))
    assert dim("edit", "--image", "in.png", "--prompt", "red", "-o", "out.png") == (0, LINE + "wrote out.png\n")
    assert dim("generate", "--prompt", "red", "-o", "new.png") == (0, LINE + "wrote new.png\n")
    assert read_metadata("out.png")["checkpoint"] == "inside"
    assert read_metadata("new.png")["settings"]["resolution"] == 64


def test_installation_without_bundled_model(monkeypatch):
    monkeypatch.setattr(bundled, "NANO", Path("inside"))
    for command in (("edit", "--image", "in.png"), ("generate",)):
        text = one_error(dim(*command, "--prompt", "red", "-o", "out.png"))
        assert "inside: the bundled model is missing" in text
        assert "--checkpoint" in text


@pytest.mark.parametrize(
    ("scale", "image_scale", "branches"), [(1.0, 1.0, (1, 1, 1)), (7.5, 1.0, (2, 2, 1)), (7.5, 1.5, (3, 2, 1)), (1.0, 1.5, (3, 1, 1))]
)
def test_branches_of_a_step(scale, image_scale, branches):
    """Of an edit, of text alone, and of a network that is told the scale."""
    settings = Settings(guidance_scale=scale, image_guidance_scale=image_scale)
    edit, text = (settings.num_branches(guidance_embeds=False, image_guidance=image) for image in (True, False))
    assert (edit, text, settings.num_branches(guidance_embeds=True)) == branches
