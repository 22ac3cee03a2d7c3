"""LoRAs of a checkpoint: painted with, merged, several at once, refused where they do not fit."""

import shutil

import numpy as np
import pytest
from PIL import Image

from dim_jax.edit_result import read_metadata
from dim_jax.errors import InputError
from dim_jax.models.module import parameters
from dim_jax.sampling import Sampler
from dim_jax.weights.lora import AdapterTarget
from dim_jax.weights.lora_files import open_lora, parse_spec, write_lora
from dim_jax.weights.opening import open_weights
from tests.lora_fixtures import base_and_lora, random_lora
from tests.painter_fixtures import QUICKLY, dim, edit, one_error, picture


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A checkpoint (base), two LoRAs (lora0 of all layers, lora1 of some) and a picture."""
    folder = tmp_path_factory.mktemp("lora")
    base_and_lora(folder)
    base_and_lora(folder, 1, rank=2, layers=("connector.fc2", "sana.blocks.attn.qkv", "sana.t_block"), scale=1.0)
    picture(64, 64).save(folder / "in.png")
    return folder


def tensors(path) -> dict[str, np.ndarray]:
    return dict(open_weights(path).stream())


@pytest.fixture(scope="module")
def merged(place):
    """Both LoRAs in the checkpoint."""
    code, text = dim(
        "convert", str(place / "base"), str(place / "merged"), "--to", "dim", "--lora", f"{place}/lora0:0.5", "--lora", f"{place}/lora1"
    )
    assert code == 0, text
    return place / "merged"


def test_a_merged_checkpoint_is_the_sum(place, merged):
    """Kernels by an independent sum in float64; every other tensor to the bit."""
    before, after = tensors(place / "base"), tensors(merged)
    sums: dict[str, np.ndarray] = {}
    for name, weight in (("lora0", 0.5), ("lora1", 1.0)):
        for slot, (a, b, scale) in open_lora(place / name).pairs.items():
            path = f"{slot.layer}.kernel"
            sums.setdefault(path, np.zeros(before[path].shape))[() if slot.block is None else slot.block] += (
                weight * scale * (a.astype(np.float64) @ b)
            )
    assert before.keys() == after.keys()
    for path, tensor in before.items():
        if path in sums:
            np.testing.assert_allclose(after[path], tensor + sums[path], rtol=1e-6, atol=1e-6)
            assert np.abs(sums[path]).max() > 0.01
        else:
            assert after[path].tobytes() == tensor.tobytes(), path
    assert len(sums) == 16


def test_a_picture_with_loras_is_that_of_the_merged_checkpoint(place, merged, tmp_path):
    """Metadata name them; without them the picture is another."""
    source = str(place / "in.png")

    def paint(name: str, checkpoint, *more: str):
        output = str(tmp_path / f"{name}.png")
        code, text = dim(*edit(*QUICKLY, *more, checkpoint=str(checkpoint), image=source, output=output))
        assert code == 0, text
        return read_metadata(output), np.asarray(Image.open(output), int)

    loras = [f"{place}/lora0:0.5", f"{place}/lora1"]
    named, both = paint("both", place / "base", *(word for one in loras for word in ("--lora", one)))
    assert named["checkpoint"] == " + ".join([str(place / "base"), *loras])
    _, expected = paint("merged", merged)
    assert np.abs(both - expected).max() <= 1
    _, plain = paint("plain", place / "base")
    assert np.abs(both - plain).max() > 20


def test_a_sampler_with_loras_leaves_the_first_as_it_is(place):
    first = Sampler.from_pretrained(place / "base")
    second = first.with_loras([str(place / "lora1")]).with_loras([f"{place}/lora0:2"])
    assert second.name == f"{place}/base + {place}/lora0:2"
    own, shared = parameters(first.dim), parameters(second.dim)
    assert all(shared[path] is tensor for path, tensor in own.items())
    assert not [path for path in own if "lora" in path]
    pair = open_lora(place / "lora0").pairs[AdapterTarget("connector.fc1", None)]
    np.testing.assert_allclose(shared["connector.fc1.lora_b"], 2 * pair.scale * pair.b, rtol=1e-6)
    assert parameters(second.with_loras([]).dim).keys() == own.keys()
    # One of the same layers and ranks runs the same programs.
    latents, third = np.zeros((1, 4, 4, first.dim.config.sana.latent_channels), np.float32), first.with_loras([f"{place}/lora0:0.5"])
    second.decode(latents)
    known = second._decode._cache_size()
    third.decode(latents)
    assert third._decode._cache_size() == known


def test_weight_zero_and_a_weight_in_the_name(place, tmp_path):
    code, text = dim("convert", str(place / "base"), str(tmp_path / "same"), "--to", "dim", "--lora", f"{place}/lora0:0")
    assert code == 0, text
    before, after = tensors(place / "base"), tensors(tmp_path / "same")
    assert all(after[path].tobytes() == tensor.tobytes() for path, tensor in before.items())
    shutil.copytree(place / "lora1", tmp_path / "x:1")
    assert parse_spec(f"{tmp_path}/x:1") == (f"{tmp_path}/x:1", 1.0)
    assert parse_spec("gs://bucket/lora") == ("gs://bucket/lora", 1.0)
    assert parse_spec("gs://bucket/lora:-0.5") == ("gs://bucket/lora", -0.5)
    with pytest.raises(InputError, match=r"lora:inf: the weight of a LoRA"):
        parse_spec("lora:inf")


def test_a_lora_of_another_model_is_refused(place, tmp_path):
    shapes = dict(open_weights(place / "base").config.shapes())
    shapes |= {path: (4, *shape[1:]) for path, shape in shapes.items() if path.startswith("sana.blocks.")}
    write_lora(tmp_path / "deeper", random_lora(shapes, layers=("sana.blocks.attn.qkv",)), "dim")
    shapes["connector.fc1.kernel"] = (99, 48)
    write_lora(tmp_path / "wider", random_lora(shapes, layers=("connector.fc1",)), "dim")
    for name, says in (
        ("deeper", "attn.qkv of block 2 is (128, 384), here it is (2, 128, 384)"),
        ("wider", "connector.fc1 is (99, 48), here it is (128, 48)"),
    ):
        text = one_error(dim("convert", str(place / "base"), str(tmp_path / "out"), "--lora", str(tmp_path / name)))
        assert f"{tmp_path / name}: is a LoRA of another model: " in text
        assert says in text
    text = one_error(dim(*edit("--lora", str(tmp_path / "wider"), checkpoint=str(place / "base"), image=str(place / "in.png"))))
    assert "another model" in text
    assert not (tmp_path / "out").exists()


def test_options_that_do_not_go_together(place, tmp_path):
    out = str(tmp_path / "out")
    assert "a LoRA is written as one of dim, peft, diffusers" in one_error(dim("convert", str(place / "lora0"), out))
    text = one_error(dim("convert", str(place / "lora0"), out, "--to", "dim", "--dtype", "bfloat16"))
    assert "is a LoRA, whose tensors stay as they are" in text
    assert "--to peft: choose one of orbax" in one_error(dim("convert", str(place / "base"), out, "--to", "peft"))
    text = one_error(dim("convert", str(place / "base"), out, "--lora", str(place / "base")))
    assert f"{place / 'base'}: holds neither adapter_model.safetensors nor pytorch_lora_weights.safetensors" in text
    assert "no such file or folder" in one_error(dim("convert", str(place / "base"), out, "--lora", "nowhere:0.5"))
