"""What conversion refuses: whatever is wrong is named, all at once, and nothing is left behind."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from dim_jax import checkpoint
from dim_jax.errors import InputError
from dim_jax.storage.paths import read_json
from dim_jax.weights.convert import assemble, convert, open_weights
from tests.published import CONFIGS, dim_folder, files, quiet, qwen_folder, run, sana_pth, tensors_of


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
    tensors = dict(checkpoint.read(orbax))
    tensors["connector.fc1.bias"] = np.full_like(tensors["connector.fc1.bias"], np.nan)
    checkpoint.save(tmp_path / "bad", tensors, read_json(orbax / "config.json"))
    assert "not finite: connector.fc1.bias" in refused(tmp_path / "bad", tmp_path / "out", "dim")


def test_a_checkpoint_folder_that_does_not_fit_its_config_is_refused(tmp_path, orbax):
    tensors = dict(checkpoint.read(orbax))
    tensors["connector.fc3.bias"] = tensors.pop("connector.fc1.bias")
    tensors["connector.fc2.bias"] = np.zeros(3, np.float32)
    config = read_json(orbax / "config.json")
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


def test_a_pipe_instead_of_weights_is_not_waited_for(tmp_path, goldens):
    source = dim_folder(tmp_path / "dim", goldens)
    (source / "model.safetensors").unlink()
    os.mkfifo(source / "model.safetensors")
    assert "model.safetensors: cannot be read (it is not an ordinary file)" in refused(source, tmp_path / "out")


def test_a_manifest_of_other_weights_is_refused(tmp_path, orbax):
    shutil.copytree(orbax, tmp_path / "other")
    manifest = (orbax / "manifest.json").read_text()
    for text, message in (
        (manifest.replace("projector.0.bias", "projector.9.bias"), "projector.9.bias is not in these weights; projector.0.bias is only in"),
        (manifest.replace('"projector.0.bias": "F32"', '"projector.0.bias": "F16"'), "connector.fc1.bias was F16, here it is F32"),
        ("{}", "is not a manifest"),
        ('{"format": "new", "files": {}}', "is not a manifest"),
        ('{"format": "dim", "headers": []}', "is not a manifest"),
        ('{"format": "dim", "headers": {}}', "is only in these weights; .*; and [0-9]+ more"),
        ('{"format": "dim", "files": {"model.safetensors": {"a": "I8"}}}', "is not a manifest"),
        ("[", "is not a JSON file"),
        (manifest.replace('"model.safetensors"', '"../model.safetensors"'), r"'../model.safetensors' is not a path within"),
        (manifest.replace('"qwen.config.json"', '"/tmp/qwen.config.json"'), "'/tmp/qwen.config.json' is not a path within"),
    ):
        (tmp_path / "other" / "manifest.json").write_text(text)
        with pytest.raises(InputError, match=f"manifest.json.*{message}"):
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
    assert open_weights(source).config.sana.is_edit


def test_another_size_without_its_configs_says_which_are_needed(tmp_path, goldens):
    source = dim_folder(tmp_path / "dim", goldens)
    for name in CONFIGS:
        (source / name).unlink()
    message = refused(source, tmp_path / "out")
    assert all(name in message for name in CONFIGS)
    # What differs from the published size is a thousand tensors: some are named, the others counted.
    assert re.search(r"decoder\S+ \([0-9, ]+\) is unknown", message)
    assert re.search(r"and [0-9,]+ more\.", message)
    assert len(message) < 2500


@pytest.mark.parametrize("part", ["transformer/config.json", "vae/config.json", "qwen.config.json"])
def test_a_missing_config_of_a_library_is_named(tmp_path, diffusers, part):
    shutil.copytree(diffusers, tmp_path / "diffusers")
    (tmp_path / "diffusers" / part).unlink()
    assert f"{part}: is missing" in refused(tmp_path / "diffusers", tmp_path / "out")


def rename(ending: str):
    return lambda file: file.rename(file.with_name(f"{file.stem}{ending}"))


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
UNUSABLE = {
    "bin": (rename(".bin"), "only config.json, diffusion_pytorch_model.bin"),
    "gguf": (rename(".gguf"), "diffusion_pytorch_model.gguf"),
    "incomplete": (rename(".safetensors.incomplete"), "unfinished downloads: diffusion_pytorch_model.safetensors.incomplete"),
    "crdownload": (rename(".safetensors.crdownload"), "unfinished downloads"),
    "aria2": (lambda file: file.with_name(f"{file.name}.aria2").touch(), "its download is not finished"),
    "gone": (Path.unlink, "only config.json"),
    "folder gone": (lambda file: shutil.rmtree(file.parent), "nothing"),
    "empty": (lambda file: file.write_bytes(b""), "0 bytes"),
    "lfs": (lambda file: file.write_text(LFS), "git lfs pull"),
    "html": (lambda file: file.write_text("\n<!DOCTYPE html><html>"), "a web page"),
    "bom and html": (lambda file: file.write_text("\ufeff<HTML>"), "a web page"),
    "pickle": (lambda file: file.write_bytes(b"PK\x03\x04" + bytes(99)), "a file of PyTorch"),
    "dangling": (lambda file: [file.unlink(), file.symlink_to("none")], "cannot be read"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_a_part_without_its_weights_is_named(tmp_path, diffusers, part, kind):
    folder = shutil.copytree(diffusers, tmp_path / "copy")
    (folder / "model_index.json").write_text('{"vae": ["diffusers", "AutoencoderDC"], "transformer": ["diffusers", "X"]}')
    spoil, message = UNUSABLE[kind]
    spoil(folder / part / "diffusion_pytorch_model.safetensors")
    said = refused(folder, tmp_path / "out")
    assert f"{folder / part}" in said
    assert message in said


@pytest.mark.parametrize("kind", UNUSABLE)
def test_a_published_folder_without_its_weights_is_named(tmp_path, goldens, kind):
    file = dim_folder(tmp_path / "dim", goldens) / "model.safetensors"
    UNUSABLE[kind][0](file)
    assert str(tmp_path / "dim") in refused(tmp_path / "dim", tmp_path / "out")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("tokenizer.json", LFS, "git lfs pull"),
        ("tokenizer.json", "", "0 bytes"),
        ("tokenizer.json", "<html>", "a web page"),
        ("tokenizer.json", "{", "no tokenizer could be loaded"),
        ("tokenizer.json", '{"model": 5}', "no tokenizer could be loaded"),
        ("tokenizer.json", None, "only tokenizer_config.json"),
    ],
)
def test_a_tokenizer_that_was_not_fetched_is_named(tmp_path, goldens, file, text, message):
    folder = dim_folder(tmp_path / "dim", goldens)
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "tokenizer_config.json").write_text("{}")
    if text is not None:
        (folder / "tokenizer" / file).write_text(text)
    said = refused(folder, tmp_path / "out")
    assert str(folder / "tokenizer") in said
    assert message in said


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
        ("empty", "has no checkpoint"),
        ("foreign", "lstm.weight"),
        ("text.safetensors", "not a whole"),
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
from dim_jax.storage.paths import read_json
from dim_jax.weights.convert import convert
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
try:
    convert({str(source)!r}, {str(tmp_path / "out")!r}, {to!r})
except InputError as error:
    print("refused:", error)
"""
    clean = {"PYTHONPATH": ":".join(sys.path), "PATH": "", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=clean)
    assert f"refused: {tmp_path / 'out'}: no space (File too large)" in done.stdout
    assert done.stderr == ""
    assert [path.name for path in tmp_path.iterdir()] == ["dim"]


def test_mismatched_init_checkpoints_are_refused(tmp_path, goldens, diffusers):
    encoder, sana = qwen_folder(tmp_path / "qwen", goldens), sana_pth(tmp_path / "sana", goldens)
    edit = sana_pth(tmp_path / "edit", goldens, "edit")
    for parents, message in (
        ((sana, encoder, diffusers / "vae"), r"SANA.pth .* has no encoder; .*qwen .* has no sana"),
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
def test_unsupported_components_of_a_format_are_refused(tmp_path, goldens, diffusers, part, to, message):
    source = qwen_folder(tmp_path / "qwen", goldens) if part == "qwen" else diffusers / part
    with pytest.raises(InputError, match=message):
        run(source, tmp_path / "out", to)


def test_an_unequal_tied_head_is_refused(tmp_path, goldens):
    tensors = tensors_of(goldens)
    tensors["mllm.lm_head.weight"] = tensors["mllm.model.embed_tokens.weight"].copy()
    tensors["mllm.lm_head.weight"][7, 3] += 1e-3
    with pytest.raises(InputError, match=r"mllm.lm_head.weight differs from mllm.model.embed_tokens.weight"):
        run(dim_folder(tmp_path / "dim", goldens, tensors), tmp_path / "out", "orbax")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dim"]


def test_tensor_stream_yields_all_before_raising(tmp_path, goldens):
    """Who reads a checkpoint straight into a model hears of every bad tensor too."""
    tensors = {name: tensor.copy() for name, tensor in tensors_of(goldens).items()}
    tensors["projector.0.bias"][0] = tensors["projector.2.bias"][0] = np.nan

    def count(stream: Iterator) -> Iterator[int]:
        yield from (1 for _ in stream)

    weights = open_weights(dim_folder(tmp_path / "dim", goldens, tensors))
    with pytest.raises(InputError, match=r"projector.0.bias is not finite; projector.2.bias is not finite"):
        list(count(weights.stream()))
