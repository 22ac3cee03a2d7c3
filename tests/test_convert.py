"""Conversion to the byte, there and back, in every format; the libraries load our exports; whatever is wrong is named, all at once."""

import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from diffusers import AutoencoderDC, SanaTransformer2DModel
from rich.console import Console
from safetensors.numpy import load_file, save_file
from transformers import Qwen2_5_VLForConditionalGeneration

from dim_jax import checkpoint
from dim_jax.errors import InputError
from dim_jax.weights.convert import assemble, convert, open_weights

CONFIGS = ("qwen.config.json", "sana_edit.json", "dc_ae.config.json")
DTYPES = {
    "fp32": (np.float32,),
    "bf16": (ml_dtypes.bfloat16,),
    "fp16": (np.float16,),
    "mixed": (np.float32, ml_dtypes.bfloat16, np.float16),
}


def tensors_of(goldens: Path) -> dict[str, np.ndarray]:
    return load_file(goldens / "dim_edit.model.safetensors")


def dim_folder(folder: Path, goldens: Path, tensors: dict[str, np.ndarray] | None = None) -> Path:
    """A checkpoint in the published naming: the goldens' tiny one, or with these tensors."""
    folder.mkdir()
    if tensors is None:
        shutil.copy(goldens / "dim_edit.model.safetensors", folder / "model.safetensors")
    else:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    for name in CONFIGS:
        shutil.copy(goldens / name, folder)
    return folder


def sharded(folder: Path, goldens: Path) -> Path:
    """The same in three shards with an index, as transformers writes them."""
    dim_folder(folder, goldens)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {name: f"model-0000{1 + i % 3}-of-00003.safetensors" for i, name in enumerate(sorted(tensors))}
    for shard in set(weight_map.values()):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == shard}, folder / shard, {"format": "pt"})
    index = {"metadata": {"total_size": 7}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def run(*args, **options) -> str:
    """Convert, and what it printed."""
    console = quiet()
    convert(*args, **options, console=console)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def orbax(tmp_path_factory) -> Path:
    """The goldens' whole tiny model as a checkpoint folder."""
    folder, goldens = tmp_path_factory.mktemp("orbax"), Path(__file__).parent / "goldens"
    convert(dim_folder(folder / "dim", goldens), folder / "orbax", "orbax", console=quiet())
    return folder / "orbax"


@pytest.fixture(scope="module")
def diffusers(orbax) -> Path:
    convert(orbax, orbax.parent / "diffusers", "diffusers", console=quiet())
    return orbax.parent / "diffusers"


# There and back


@pytest.mark.parametrize("make", [dim_folder, sharded])
def test_a_published_folder_comes_back_to_the_byte(tmp_path, goldens, make):
    source = make(tmp_path / "dim", goldens)
    printed = run(source, tmp_path / "orbax", "orbax")
    run(tmp_path / "orbax", tmp_path / "back", "dim")
    assert files(tmp_path / "back") == files(source)
    assert "decoder.model.pos_embed" in printed
    assert "724,544" in printed


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_comes_back_to_the_byte(tmp_path, goldens, dtype):
    """Also where layers that we stack, or parts that we join, have different ones."""
    kinds = DTYPES[dtype]
    tensors = {name: tensor.astype(kinds[i % len(kinds)]) for i, (name, tensor) in enumerate(tensors_of(goldens).items())}
    source = dim_folder(tmp_path / "dim", goldens, tensors)
    run(source, tmp_path / "orbax", "orbax")
    run(tmp_path / "orbax", tmp_path / "back", "dim")
    assert files(tmp_path / "back") == files(source)


def test_a_checkpoint_folder_holds_what_the_published_one_does(orbax, goldens):
    weights = open_weights(orbax.parent / "dim")
    stored = checkpoint.load(orbax)
    ours = dict(weights.stream())
    assert ours.keys() == stored.keys() == weights.stored.keys()
    assert all(ours[path].tobytes() == stored[path].tobytes() for path in ours)
    assert open_weights(orbax).sizes == weights.sizes
    assert sorted(path.name for path in orbax.iterdir()) == ["config.json", "extras.safetensors", "manifest.json", "weights"]


def test_diffusers_and_back_is_the_published_file(diffusers, orbax, tmp_path):
    """Through diffusers' naming, with what it cannot hold beside it; also by way of another checkpoint folder."""
    run(diffusers, tmp_path / "direct", "dim")
    assert files(tmp_path / "direct")["model.safetensors"] == files(orbax.parent / "dim")["model.safetensors"]
    run(diffusers, tmp_path / "orbax", "orbax")
    run(tmp_path / "orbax", tmp_path / "back", "diffusers")
    assert files(tmp_path / "back") == files(diffusers)
    assert sorted(files(diffusers)) == [
        "dim_extra.safetensors",
        "qwen.config.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]


def test_without_a_manifest_the_usual_files_are_written(orbax, tmp_path):
    shutil.copytree(orbax, tmp_path / "trained")
    (tmp_path / "trained" / "manifest.json").unlink()
    run(tmp_path / "trained", tmp_path / "dim", "dim")
    assert files(tmp_path / "dim")["model.safetensors"] == files(orbax.parent / "dim")["model.safetensors"]
    assert open_weights(tmp_path / "dim").sizes == open_weights(orbax).sizes


# The libraries load our exports


def test_diffusers_sana_paints_what_the_published_code_does(diffusers, goldens):
    """At whole timesteps, where the two agree; the published tolerance, and diffusers' other epsilon."""
    model = SanaTransformer2DModel.from_pretrained(diffusers / "transformer").eval()
    golden = {name: torch.from_numpy(tensor) for name, tensor in load_file(goldens / "sana_edit.forward.safetensors").items()}
    for case, row in ((0, 0), (1, 0), (2, 1)):
        case = f"{case}."
        latents = torch.cat([golden[case + "latents"], golden[case + "source_latents"]], 1)[row : row + 1]
        timestep = golden[case + "timestep"][row : row + 1]
        assert timestep == timestep.round()
        with torch.no_grad():
            velocity = model(
                latents,
                golden[case + "condition"][row : row + 1],
                timestep,
                encoder_attention_mask=golden[case + "condition_mask"][row : row + 1].float(),
            ).sample
        torch.testing.assert_close(velocity, golden[case + "velocity"][row : row + 1], rtol=1e-4, atol=1e-5)


def test_diffusers_autoencoder_computes_the_same(diffusers, goldens):
    model = AutoencoderDC.from_pretrained(diffusers / "vae").eval()
    same = AutoencoderDC.from_config(json.loads((goldens / "dc_ae.config.json").read_text())).eval()
    prefix = "decoder.vae."
    same.load_state_dict({n.removeprefix(prefix): torch.from_numpy(t) for n, t in tensors_of(goldens).items() if n.startswith(prefix)})
    pixels = torch.rand(1, 3, 64, 96, generator=torch.manual_seed(0)) * 2 - 1
    with torch.no_grad():
        assert torch.equal(model.encode(pixels).latent, same.encode(pixels).latent)
        latents = same.encode(pixels).latent
        assert torch.equal(model.decode(latents).sample, same.decode(latents).sample)


def qwen_folder(folder: Path, goldens: Path) -> Path:
    folder.mkdir()
    shutil.copy(goldens / "qwen.weights.safetensors", folder / "model.safetensors")
    shutil.copy(goldens / "qwen.config.json", folder / "config.json")
    return folder


def logits(folder: Path, goldens: Path) -> torch.Tensor:
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    golden = load_file(goldens / "qwen.forward.safetensors")
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(golden["0.input_ids"]), attention_mask=torch.from_numpy(golden["0.attention_mask"])).logits


def test_transformers_computes_the_same_from_our_export(tmp_path, goldens, orbax):
    source = qwen_folder(tmp_path / "qwen", goldens)
    run(source, tmp_path / "orbax", "orbax")
    run(tmp_path / "orbax", tmp_path / "back", "qwen")
    assert files(tmp_path / "back") == files(source)
    (tmp_path / "orbax" / "manifest.json").unlink()
    run(tmp_path / "orbax", tmp_path / "usual", "qwen")
    expected = logits(source, goldens)
    assert torch.equal(logits(tmp_path / "usual", goldens), expected)
    golden = torch.from_numpy(load_file(goldens / "qwen.forward.safetensors")["0.logits"])
    torch.testing.assert_close(expected, golden, rtol=1e-4, atol=1e-4)
    # From a whole Draw-In-Mind, only its encoder.
    run(orbax, tmp_path / "encoder", "qwen")
    exported = load_file(tmp_path / "encoder" / "model.safetensors")
    assert exported.keys() == {name.removeprefix("mllm.") for name in tensors_of(goldens) if name.startswith("mllm.")}
    assert logits(tmp_path / "encoder", goldens).isfinite().all()


def test_new_key_names_of_transformers_are_read_and_written(tmp_path, goldens):
    source = qwen_folder(tmp_path / "qwen", goldens)
    new = {
        name.replace("visual.", "model.visual.") if name.startswith("visual.") else name.replace("model.", "model.language_model."): tensor
        for name, tensor in load_file(source / "model.safetensors").items()
    }
    save_file(new, source / "model.safetensors", {"format": "pt"})
    run(source, tmp_path / "orbax", "orbax")
    run(tmp_path / "orbax", tmp_path / "back", "qwen")
    assert files(tmp_path / "back") == files(source)
    whole = {name: tensor for name, tensor in tensors_of(goldens).items() if not name.startswith("mllm.")}
    source = dim_folder(tmp_path / "dim", goldens, whole | {f"mllm.{name}": tensor for name, tensor in new.items()})
    run(source, tmp_path / "orbax2", "orbax")
    run(tmp_path / "orbax2", tmp_path / "back2", "dim")
    assert files(tmp_path / "back2") == files(source)


# Parts alone


def sana_pth(folder: Path, goldens: Path, kind: str = "t2i") -> Path:
    folder.mkdir()
    tensors = {name: torch.from_numpy(tensor) for name, tensor in load_file(goldens / f"sana_{kind}.weights.safetensors").items()}
    torch.save({"state_dict": tensors | {"pos_embed": torch.zeros(1, 16, 128)}}, folder / "SANA.pth")
    shutil.copy(goldens / f"sana_{kind}.json", folder)
    return folder / "SANA.pth"


def test_a_sana_pth_comes_back_with_its_keys_and_bytes(tmp_path, goldens):
    source = sana_pth(tmp_path / "sana", goldens)
    run(source, tmp_path / "orbax", "orbax")
    run(tmp_path / "orbax", tmp_path / "back", "dim")
    expected = torch.load(source, weights_only=True)["state_dict"]
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert back.keys() == expected.keys()
    assert all(back[name].tobytes() == tensor.numpy().tobytes() for name, tensor in expected.items())
    run(tmp_path / "back", tmp_path / "again", "dim")
    assert files(tmp_path / "again") == files(tmp_path / "back")


def test_diffusers_folders_alone_come_back_to_the_byte(tmp_path, diffusers, goldens):
    for part in ("transformer", "vae"):
        printed = run(diffusers / part, tmp_path / part, "orbax")
        run(tmp_path / part, tmp_path / f"{part}-back", "diffusers")
        assert files(tmp_path / f"{part}-back") == files(diffusers / part)
        assert ("drawn at random: sana.y_embedder.y_embedding (300, 48)" in printed) == (part == "transformer")
    null = checkpoint.load(tmp_path / "transformer")["sana.y_embedder.y_embedding"]
    assert abs(null.std() * 48**0.5 - 1) < 0.05
    bare = tmp_path / "bare"
    shutil.copytree(diffusers, bare)
    (bare / "dim_extra.safetensors").unlink()
    run(bare, tmp_path / "both", "orbax")
    assert open_weights(tmp_path / "both").sizes.parts == ("sana", "autoencoder")


def test_three_parents_make_the_start_of_training(tmp_path, goldens, diffusers):
    (tmp_path / "tokenizer.json").write_text("{}")
    encoder, sana = qwen_folder(tmp_path / "qwen", goldens), sana_pth(tmp_path / "sana", goldens)
    (encoder / "tokenizer.json").write_text("{}")
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assemble(encoder, sana, diffusers / "vae", tmp_path / name, condition_length=40, seed=seed, console=quiet())
    a, b, c = (checkpoint.load(tmp_path / name) for name in "abc")
    assert all(a[path].tobytes() == b[path].tobytes() for path in a)
    changed = {path for path in a if a[path].tobytes() != c[path].tobytes()}
    assert changed == {"connector.fc1.kernel", "connector.fc2.kernel", "sana.y_embedder.y_embedding"}
    null = load_file(goldens / "sana_t2i.weights.safetensors")["y_embedder.y_embedding"]
    np.testing.assert_array_equal(a["sana.y_embedder.y_embedding"][: len(null)], null)
    assert a["sana.y_embedder.y_embedding"].shape == (40, 48)
    assert a["connector.fc1.kernel"].shape == (128, 48)
    assert checkpoint.tokenizer_files(tmp_path / "a")[0].name == "tokenizer.json"
    run(tmp_path / "a", tmp_path / "dim", "dim")
    assert open_weights(tmp_path / "dim").sizes == open_weights(tmp_path / "a").sizes
    published = load_file(tmp_path / "dim" / "model.safetensors")
    assert published.keys() == tensors_of(goldens).keys(), "also the buffer that the published class wants to find"
    assert (tmp_path / "dim" / "tokenizer" / "tokenizer.json").exists()


def test_parents_that_do_not_fit_are_refused(tmp_path, goldens, diffusers):
    encoder, sana = qwen_folder(tmp_path / "qwen", goldens), sana_pth(tmp_path / "sana", goldens)
    edit = sana_pth(tmp_path / "edit", goldens, "edit")
    for parents, message in (
        ((sana, encoder, diffusers / "vae"), r"SANA.pth .* holds no encoder; .*qwen .* holds no sana"),
        ((encoder, edit, diffusers / "vae"), "16 input channels and 24 null rows"),
    ):
        with pytest.raises(InputError, match=message):
            assemble(*parents, tmp_path / "out", console=quiet())
    with pytest.raises(InputError, match="at most 8 rows"):
        assemble(encoder, sana, diffusers / "vae", tmp_path / "out", condition_length=8, console=quiet())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("part", "to", "message"),
    [("qwen", "dim", "only encoder"), ("qwen", "diffusers", "nothing that diffusers"), ("vae", "qwen", "nothing")],
)
def test_what_a_format_cannot_hold_is_refused(tmp_path, goldens, diffusers, part, to, message):
    source = qwen_folder(tmp_path / "qwen", goldens) if part == "qwen" else diffusers / part
    with pytest.raises(InputError, match=message):
        run(source, tmp_path / "out", to)


# Known extras


def test_a_tied_head_is_an_alias(tmp_path, goldens):
    tensors = tensors_of(goldens)
    tensors["mllm.lm_head.weight"] = tensors["mllm.model.embed_tokens.weight"]
    source = dim_folder(tmp_path / "dim", goldens, tensors)
    assert "tied: mllm.lm_head.weight repeats mllm.model.embed_tokens.weight" in run(source, tmp_path / "orbax", "orbax")
    assert not any("lm_head" in path for path in checkpoint.abstract(tmp_path / "orbax"))
    run(tmp_path / "orbax", tmp_path / "back", "dim")
    assert files(tmp_path / "back") == files(source)


def test_an_unequal_tied_head_is_refused(tmp_path, goldens):
    tensors = tensors_of(goldens)
    tensors["mllm.lm_head.weight"] = tensors["mllm.model.embed_tokens.weight"].copy()
    tensors["mllm.lm_head.weight"][7, 3] += 1e-3
    with pytest.raises(InputError, match=r"mllm.lm_head.weight differs from mllm.model.embed_tokens.weight"):
        run(dim_folder(tmp_path / "dim", goldens, tensors), tmp_path / "out", "orbax")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dim"]


@pytest.mark.parametrize("make", [dim_folder, sharded])
def test_a_text_encoder_is_dropped_and_said_so(tmp_path, goldens, make):
    source = make(tmp_path / "dim", goldens)
    file = sorted(source.glob("*.safetensors"))[0]
    extra = {f"decoder.text_encoder.layers.{i}.w": np.ones((2, 3), np.float32) for i in range(3)}
    expected = files(source)
    save_file(load_file(file) | extra, file, {"format": "pt"})
    if make is sharded:
        index = json.loads((source / "model.safetensors.index.json").read_text())
        index["weight_map"] |= dict.fromkeys(extra, file.name)
        (source / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "dropped: 3 tensors of a text encoder" in run(source, tmp_path / "orbax", "orbax")
    run(tmp_path / "orbax", tmp_path / "back", "dim")
    back = files(tmp_path / "back")
    index = back.pop("model.safetensors.index.json", None)
    old = expected.pop("model.safetensors.index.json", None)
    assert back == expected
    assert index is old is None or json.loads(index)["weight_map"] == json.loads(old)["weight_map"]


# What is wrong is named, all at once


def refused(source: Path, target: Path, to: str = "orbax") -> str:
    """The message; nothing may be left behind."""
    before = set(target.parent.iterdir())
    with pytest.raises(InputError) as error:
        run(source, target, to)
    assert set(target.parent.iterdir()) == before
    return str(error.value)


def test_unknown_missing_and_misshapen_tensors_are_all_named(tmp_path, goldens):
    tensors = tensors_of(goldens)
    del tensors["projector.0.bias"], tensors["decoder.model.blocks.1.attn.qkv.weight"]
    tensors["projector.1.weight"] = tensors["decoder.model.extra"] = np.zeros((2, 2), np.float32)
    tensors["mllm.model.norm.weight"] = np.zeros(7, np.float32)
    tensors["decoder.vae.encoder.conv_in.bias"] = np.zeros((16, 1), np.float32)
    message = refused(dim_folder(tmp_path / "dim", goldens, tensors), tmp_path / "out")
    for part in (
        f"{tmp_path / 'dim'} (Draw-In-Mind)",
        "projector.1.weight (2, 2) is unknown",
        "decoder.model.extra (2, 2) is unknown",
        "projector.0.bias (48,) is missing",
        "decoder.model.blocks.1.attn.qkv.weight (384, 128) is missing",
        "mllm.model.norm.weight is (7,), expected (128,)",
        "decoder.vae.encoder.conv_in.bias is (16, 1), expected (16,)",
    ):
        assert part in message
    assert len(re.findall("is unknown|is missing|, expected", message)) == 6


@pytest.mark.parametrize("to", ["orbax", "dim", "diffusers"])
def test_numbers_that_are_not_finite_are_all_named(tmp_path, goldens, to):
    tensors = {name: tensor.copy() for name, tensor in tensors_of(goldens).items()}
    bad = ["decoder.model.blocks.1.mlp.depth_conv.conv.bias", "mllm.model.layers.2.self_attn.q_proj.bias", "decoder.model.pos_embed"]
    for name, value in zip(bad, (np.nan, np.inf, -np.inf), strict=True):
        tensors[name].flat[-1] = value
    message = refused(dim_folder(tmp_path / "dim", goldens, tensors), tmp_path / "out", to)
    assert all(f"{name} is not finite" in message for name in bad)


def test_a_checkpoint_folder_with_a_bad_number_is_refused(tmp_path, orbax):
    tensors = dict(checkpoint.load(orbax))
    tensors["connector.fc1.bias"] = np.full_like(tensors["connector.fc1.bias"], np.nan)
    checkpoint.save(tmp_path / "bad", tensors, checkpoint.read_json(orbax / "config.json"))
    assert "not finite: connector.fc1.bias" in refused(tmp_path / "bad", tmp_path / "out", "dim")


def test_a_checkpoint_folder_that_does_not_fit_its_config_is_refused(tmp_path, orbax):
    tensors = dict(checkpoint.load(orbax))
    tensors["connector.fc3.bias"] = tensors.pop("connector.fc1.bias")
    tensors["connector.fc2.bias"] = np.zeros(3, np.float32)
    config = checkpoint.read_json(orbax / "config.json")
    checkpoint.save(tmp_path / "bad", tensors, config)
    message = refused(tmp_path / "bad", tmp_path / "out", "dim")
    for part in (
        "connector.fc3.bias (48,) is unknown",
        "connector.fc1.bias (48,) is missing",
        "connector.fc2.bias is (3,), expected (48,)",
    ):
        assert part in message
    checkpoint.save(tmp_path / "strange", tensors, {"designer": {}})
    assert "designer" in refused(tmp_path / "strange", tmp_path / "out", "dim")


def test_a_manifest_of_other_weights_is_refused(tmp_path, orbax):
    shutil.copytree(orbax, tmp_path / "other")
    manifest = json.loads((orbax / "manifest.json").read_text())
    header = manifest["headers"]["model.safetensors"]
    for text, message in (
        (header.replace("projector.0.bias", "projector.9.bias"), "projector.9.bias is not in these weights; projector.0.bias is only in"),
        (
            header.replace('"projector.0.bias":{"dtype":"F32","shape":[48]', '"projector.0.bias":{"dtype":"F32","shape":[24,2]'),
            r"projector.0.bias is \(24, 2\), here",
        ),
    ):
        manifest["headers"]["model.safetensors"] = text
        (tmp_path / "other" / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(InputError, match=message):
            run(tmp_path / "other", tmp_path / "out", "dim")
    for text in ("{}", '{"format": "new", "headers": {}}', "["):
        (tmp_path / "other" / "manifest.json").write_text(text)
        with pytest.raises(InputError, match=r"manifest.json"):
            run(tmp_path / "other", tmp_path / "out", "dim")


def test_a_config_that_disagrees_with_the_tensors_is_refused(tmp_path, goldens):
    source = dim_folder(tmp_path / "dim", goldens)
    config = json.loads((source / "sana_edit.json").read_text())
    config["config"]["condition_length"] = 99
    (source / "sana_edit.json").write_text(json.dumps(config))
    assert "16 input channels and 24 null rows, but sana_edit.json: 16 and 99" in refused(source, tmp_path / "out")
    shutil.copy(goldens / "sana_t2i.json", source / "sana_edit.json")
    assert "but sana_edit.json: 8 and 24" in refused(source, tmp_path / "out")


def test_of_two_configs_the_one_that_fits_is_used(tmp_path, goldens):
    source = dim_folder(tmp_path / "dim", goldens)
    shutil.copy(goldens / "sana_t2i.json", source)
    assert open_weights(source).sizes.sana.is_edit


def test_another_size_without_its_configs_says_which_are_needed(tmp_path, goldens):
    source = dim_folder(tmp_path / "dim", goldens)
    for name in CONFIGS:
        (source / name).unlink()
    message = refused(source, tmp_path / "out")
    assert all(name in message for name in CONFIGS)
    assert "decoder.model.blocks.19.attn.qkv.weight (6720, 2240) is missing" in message


@pytest.mark.parametrize("part", ["transformer/config.json", "vae/config.json", "qwen.config.json"])
def test_a_missing_config_of_a_library_is_named(tmp_path, diffusers, part):
    shutil.copytree(diffusers, tmp_path / "diffusers")
    (tmp_path / "diffusers" / part).unlink()
    assert f"{part}: is missing" in refused(tmp_path / "diffusers", tmp_path / "out")


def test_other_kinds_of_diffusers_sana_are_refused(tmp_path, diffusers):
    shutil.copytree(diffusers / "transformer", tmp_path / "transformer")
    file = tmp_path / "transformer" / "config.json"
    config = json.loads(file.read_text())
    for change, message in (
        ({"qk_norm": None}, "qk_norm None"),
        ({"interpolation_scale": 1}, "interpolation_scale 1"),
        ({"guidance_embeds": True}, "guidance_embeds is True"),
        ({"patch_size": 2}, "patch_size is 2"),
        ({"cross_attention_dim": 100}, "the width of the linear attention"),
        ({"_class_name": "FluxTransformer2DModel"}, "_class_name"),
    ):
        file.write_text(json.dumps(config | change))
        assert message in refused(tmp_path / "transformer", tmp_path / "out")


def test_what_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign").mkdir()
    save_file({"lstm.weight": np.zeros(2, np.float32)}, tmp_path / "foreign" / "model.safetensors")
    (tmp_path / "text.safetensors").write_text("no")
    for name, message in (
        ("none", "no such file or folder"),
        ("empty", "no checkpoint in it"),
        ("foreign", "lstm.weight"),
        ("text.safetensors", "no whole"),
    ):
        assert message in refused(tmp_path / name, tmp_path / "out")


def test_outputs_are_protected(tmp_path, orbax, goldens):
    source = dim_folder(tmp_path / "dim", goldens)
    with pytest.raises(InputError, match="is, or holds, the source"):
        run(source, source, "orbax", overwrite=True)
    with pytest.raises(InputError, match="is, or holds, the source"):
        run(source, tmp_path, "orbax", overwrite=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("do not lose me")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="out"):
            run(source, tmp_path / "out", "orbax", overwrite=overwrite)
    assert (tmp_path / "out" / "thesis.txt").exists()
    with pytest.raises(InputError, match="--to pickle"):
        run(source, tmp_path / "new", "pickle")


def test_overwriting_replaces_the_whole_folder(tmp_path, orbax, goldens):
    source = dim_folder(tmp_path / "dim", goldens)
    run(orbax, tmp_path / "out", "diffusers")
    run(source, tmp_path / "out", "dim", overwrite=True)
    assert files(tmp_path / "out") == files(source)


@pytest.mark.parametrize("to", ["orbax", "dim", "diffusers"])
def test_a_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path, goldens, to):
    """A limit on the size of a file stands for the full disk: the system refuses the write in the same way."""
    source = dim_folder(tmp_path / "dim", goldens)
    code = f"""
import resource
from dim_jax.errors import InputError
from dim_jax.weights.convert import convert
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
try:
    convert({str(source)!r}, {str(tmp_path / "out")!r}, {to!r})
except InputError as error:
    print("refused:", error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": ":".join(sys.path), "PATH": ""}
    )
    assert f"refused: {tmp_path / 'out'}: no space (File too large)" in done.stdout
    assert done.stderr == ""
    assert [path.name for path in tmp_path.iterdir()] == ["dim"]


# Tokenizer


def test_the_tokenizer_goes_with_the_weights(tmp_path, goldens, orbax):
    tokenizer = Path(__file__).parent / "tiny_tokenizer"
    assert "tokenizer: tokenizer.json, tokenizer_config.json" in run(orbax, tmp_path / "with", "orbax", tokenizer=tokenizer)
    names = ["tokenizer.json", "tokenizer_config.json"]
    assert [file.name for file in checkpoint.tokenizer_files(tmp_path / "with")] == names
    for to, place in (("dim", "tokenizer"), ("diffusers", "tokenizer"), ("qwen", ".")):
        run(tmp_path / "with", tmp_path / to, to)
        assert all((tmp_path / to / place / name).read_bytes() == (tokenizer / name).read_bytes() for name in names)
        assert [file.name for file in open_weights(tmp_path / to).tokenizer] == names
    with pytest.raises(InputError, match="no tokenizer in it"):
        run(orbax, tmp_path / "out", "dim", tokenizer=tmp_path)


def test_a_stream_gives_every_tensor_before_it_complains(tmp_path, goldens):
    """Who reads a checkpoint straight into a model hears of every bad tensor too."""
    tensors = {name: tensor.copy() for name, tensor in tensors_of(goldens).items()}
    tensors["projector.0.bias"][0] = tensors["projector.2.bias"][0] = np.nan

    def count(stream: Iterator) -> Iterator[int]:
        yield from (1 for _ in stream)

    weights = open_weights(dim_folder(tmp_path / "dim", goldens, tensors))
    with pytest.raises(InputError, match=r"projector.0.bias is not finite; projector.2.bias is not finite"):
        list(count(weights.stream()))
