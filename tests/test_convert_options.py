"""What conversion changes when it is asked to: the dtype of every tensor, and the size of the files."""

import json
import shutil
from collections import namedtuple
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import Qwen2_5_VLForConditionalGeneration

from dim_jax import checkpoint
from dim_jax.errors import InputError
from dim_jax.models.module import parameters
from dim_jax.sampling import Sampler
from dim_jax.storage.disk import parse_size
from dim_jax.storage.paths import read_json
from dim_jax.weights.convert import assemble, open_weights
from tests.painter_fixtures import dim, one_error, painter, tiny_checkpoint
from tests.published import dim_folder, files, quiet, qwen_folder, run, sana_pth, sharded, tensors_of

BF16 = np.dtype(ml_dtypes.bfloat16)
LIMIT = 2**20  # bytes: the tiny model of 7.26 MiB takes eight of them


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """The goldens' whole tiny model, float32, in one file."""
    return dim_folder(tmp_path_factory.mktemp("options") / "dim", Path(__file__).parent / "goldens")


@pytest.fixture(scope="module")
def shards(source) -> Path:
    """The same in shards."""
    run(source, source.parent / "shards", "dim", max_shard_size=LIMIT)
    return source.parent / "shards"


def read(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a folder, by the library."""
    return {name: tensor for file in sorted(folder.rglob("*.safetensors")) for name, tensor in load_file(file).items()}


def same(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> bool:
    return ours.keys() == theirs.keys() and all(
        ours[name].dtype == theirs[name].dtype and ours[name].tobytes() == theirs[name].tobytes() for name in theirs
    )


def refused(source: Path, to: str = "dim", **options) -> str:
    """The message; nothing may be left behind."""
    before = set(source.parent.iterdir())
    with pytest.raises(InputError) as error:
        run(source, source.parent / "out", to, **options)
    assert set(source.parent.iterdir()) == before
    return str(error.value)


# The dtype


@pytest.mark.parametrize("through", ["straight", "orbax", "scratch file"])
def test_values_are_the_casts_of_numpy(tmp_path, goldens, source, through, monkeypatch):
    """Also by way of a checkpoint folder that is cast, whose manifest and sizes say so, and with tensors cast in a file on the disk."""
    if through == "scratch file":
        monkeypatch.setattr("dim_jax.weights.arrays.LARGE", 1000)
    if through == "orbax":
        run(source, tmp_path / "orbax", "orbax", dtype="bfloat16")
        assert {leaf.dtype for leaf in checkpoint.abstract(tmp_path / "orbax").values()} == {BF16}
        assert load_file(tmp_path / "orbax" / "extras.safetensors")["sana.pos_embed"].dtype == BF16
        assert read_json(tmp_path / "orbax" / "config.json")["encoder"]["torch_dtype"] == "bfloat16"
        run(tmp_path / "orbax", tmp_path / "out", "dim")
    else:
        printed = run(source, tmp_path / "out", "dim", dtype="bfloat16")
        assert "7.26 MiB" in printed, "what was read"
        assert "cast to bfloat16: 3.63 MiB" in printed
    assert same(read(tmp_path / "out"), {name: tensor.astype(BF16) for name, tensor in tensors_of(goldens).items()})
    assert same(dict(open_weights(tmp_path / "out").stream()), {n: t.astype(BF16) for n, t in open_weights(source).stream()})


def test_bfloat16_cast_rounds_ties_to_even(tmp_path, goldens):
    tensors = tensors_of(goldens)
    step = 2.0**-7  # of bfloat16 from 1 to 2
    values = np.resize(np.array([1 + step / 2, 1 + 1.5 * step, 1 + 0.51 * step, -1 - step / 2], np.float32), 48)
    tensors["projector.0.bias"] = values
    run(dim_folder(tmp_path / "dim", goldens, tensors), tmp_path / "out", "dim", dtype="bfloat16")
    expected = np.resize([1, 1 + 2 * step, 1 + step, -1], 48)
    np.testing.assert_array_equal(read(tmp_path / "out")["projector.0.bias"].astype(np.float64), expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_mixed_dtypes_become_one(tmp_path, goldens, dtype):
    kinds = (np.float32, BF16, np.float16)
    tensors = {name: tensor.astype(kinds[i % 3]) for i, (name, tensor) in enumerate(tensors_of(goldens).items())}
    run(dim_folder(tmp_path / "dim", goldens, tensors), tmp_path / "out", "dim", dtype=dtype)
    assert same(read(tmp_path / "out"), {name: tensor.astype(dtype) for name, tensor in tensors.items()})


def test_cast_to_same_dtype_is_identity(tmp_path, goldens):
    source = sharded(tmp_path / "dim", goldens)
    run(source, tmp_path / "out", "dim", dtype="float32")
    assert files(tmp_path / "out") == files(source)


def test_shards_and_configs_say_what_is_true_after_a_cast(tmp_path, goldens):
    source = sharded(tmp_path / "dim", goldens)
    config = json.loads((source / "qwen.config.json").read_text())
    config |= {"torch_dtype": "float32", "vision_config": config["vision_config"] | {"dtype": "float32"}}
    (source / "qwen.config.json").write_text(json.dumps(config, indent=3))
    run(source, tmp_path / "out", "dim", dtype="bfloat16")
    index, old = (json.loads((folder / "model.safetensors.index.json").read_text()) for folder in (tmp_path / "out", source))
    assert index["weight_map"] == old["weight_map"]
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in read(tmp_path / "out").values())
    assert (tmp_path / "out" / "qwen.config.json").read_text() == (source / "qwen.config.json").read_text().replace("float32", "bfloat16")


def test_other_formats_are_cast_too(tmp_path, goldens, source):
    run(source, tmp_path / "diffusers", "diffusers", dtype="bfloat16")
    run(tmp_path / "diffusers", tmp_path / "back", "dim")
    assert same(read(tmp_path / "back"), {name: tensor.astype(BF16) for name, tensor in tensors_of(goldens).items()})
    run(source, tmp_path / "qwen", "qwen", dtype="bfloat16")
    assert {tensor.dtype for tensor in read(tmp_path / "qwen").values()} == {BF16}
    assert json.loads((tmp_path / "qwen" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    run(tmp_path / "diffusers", tmp_path / "diffusers32", "diffusers", dtype="float32")
    assert {tensor.dtype for tensor in read(tmp_path / "diffusers32").values()} == {np.dtype(np.float32)}


def test_the_start_of_training_is_cast_too(tmp_path, goldens, source):
    run(source, tmp_path / "diffusers", "diffusers")
    encoder, sana, start = qwen_folder(tmp_path / "qwen", goldens), sana_pth(tmp_path / "sana", goldens), tmp_path / "start"
    assemble(encoder, sana, tmp_path / "diffusers" / "vae", start, condition_length=40, dtype="bfloat16", console=quiet())
    assert {leaf.dtype for leaf in checkpoint.abstract(start).values()} == {BF16}


@pytest.mark.parametrize("to", ["dim", "orbax", "diffusers"])
def test_tensors_that_become_infinite_are_all_named(tmp_path, goldens, to):
    tensors = {name: tensor.copy() for name, tensor in tensors_of(goldens).items()}
    bad = ["projector.0.bias", "mllm.model.layers.2.self_attn.q_proj.bias", "decoder.model.pos_embed"]
    for name in bad:
        tensors[name].flat[-1] = -np.finfo(np.float32).max
    source = dim_folder(tmp_path / "dim", goldens, tensors)
    message = refused(source, to, dtype="bfloat16")
    assert "too large for bfloat16" in message
    listed = message.split("infinite: ")[1].split(". ")[0].split(", ")
    assert sorted(listed) == sorted(bad)
    run(source, tmp_path / "fine", to, dtype="float32")


def test_without_a_manifest_our_path_is_named(tmp_path, source):
    run(source, tmp_path / "orbax", "orbax")
    tensors = dict(checkpoint.read(tmp_path / "orbax"))
    tensors["connector.fc1.bias"] = np.full_like(tensors["connector.fc1.bias"], 3.4e38)
    checkpoint.save(tmp_path / "trained", tensors, read_json(tmp_path / "orbax" / "config.json"))
    assert "infinite: connector.fc1.bias." in refused(tmp_path / "trained", dtype="bfloat16")


def test_non_finite_inputs_are_reported(tmp_path, goldens):
    tensors = {name: tensor.copy() for name, tensor in tensors_of(goldens).items()}
    tensors["projector.0.bias"][3], tensors["projector.2.bias"][3] = np.nan, np.inf
    message = refused(dim_folder(tmp_path / "dim", goldens, tensors), dtype="bfloat16")
    assert "projector.0.bias is not finite; projector.2.bias is not finite" in message


def test_the_space_that_is_needed_follows_the_dtype(source, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 5 * 2**20))
    assert " MiB are needed, 5 MiB are free" in refused(source)
    run(source, tmp_path / "out", "dim", dtype="bfloat16")


def test_another_dtype_is_refused(source):
    assert "choose one of float32, bfloat16" in refused(source, dtype="float16")


# The size of files


def test_shards_are_full_and_named_as_transformers_does(shards, goldens):
    index = json.loads((shards / "model.safetensors.index.json").read_text())
    expected = tensors_of(goldens)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in expected.values())
    names = sorted(path.name for path in shards.glob("*.safetensors"))
    assert names == sorted(set(index["weight_map"].values())) == [f"model-{i:05d}-of-{len(names):05d}.safetensors" for i in range(1, 9)]
    contents = [load_file(shards / name) for name in names]
    assert all(index["weight_map"][name] == file for file, held in zip(names, contents, strict=True) for name in held)
    sizes = [sum(tensor.nbytes for tensor in held.values()) for held in contents]
    assert max(sizes) <= LIMIT
    for size, following in zip(sizes, contents[1:], strict=False):
        assert size + following[min(following)].nbytes > LIMIT, "another tensor would have found room"
    assert same(read(shards), expected)


def test_sharded_roundtrip_is_bit_identical(tmp_path, source, shards):
    run(shards, tmp_path / "one", "dim", max_shard_size=10**9)
    assert files(tmp_path / "one") == files(source)
    run(shards, tmp_path / "orbax", "orbax")
    run(tmp_path / "orbax", tmp_path / "again", "dim")
    assert files(tmp_path / "again") == files(shards)
    run(tmp_path / "orbax", tmp_path / "one-again", "dim", max_shard_size=10**9)
    assert files(tmp_path / "one-again") == files(source)


def test_shards_do_not_depend_on_the_files_before(tmp_path, goldens, shards):
    run(sharded(tmp_path / "three", goldens), tmp_path / "out", "dim", max_shard_size=LIMIT)
    assert files(tmp_path / "out") == files(shards)


def test_exact_shard_limit_makes_one_file(tmp_path, goldens, source):
    total = sum(tensor.nbytes for tensor in tensors_of(goldens).values())
    run(source, tmp_path / "one", "dim", max_shard_size=total)
    assert files(tmp_path / "one") == files(source)
    run(source, tmp_path / "two", "dim", max_shard_size=total - 1)
    assert len(list((tmp_path / "two").glob("model-*-of-00002.safetensors"))) == 2


def test_the_limit_is_on_what_is_written(tmp_path, goldens, source):
    """Cast to half the size, the same tensors fit half the shards."""
    run(source, tmp_path / "out", "dim", dtype="bfloat16", max_shard_size=LIMIT)
    assert len(list((tmp_path / "out").glob("model-*-of-00004.safetensors"))) == 4
    assert same(read(tmp_path / "out"), {name: tensor.astype(BF16) for name, tensor in tensors_of(goldens).items()})


def test_tensors_above_the_limit_are_named_with_their_size(source, goldens):
    limit = 200_000
    large = [name for name, tensor in tensors_of(goldens).items() if tensor.nbytes > limit]
    message = refused(source, max_shard_size=limit)
    assert "the shard size of 200,000 bytes is less than" in message
    assert message.count(" bytes)") == len(large) >= 2
    for name in large:
        assert f"{name} ({tensors_of(goldens)[name].nbytes:,} bytes)" in message


@pytest.mark.parametrize("to", ["orbax", "diffusers"])
def test_formats_without_shards_refuse_a_limit(source, to):
    assert f"goes with --to dim and qwen, not with {to}" in refused(source, to, max_shard_size=LIMIT)


def test_transformers_loads_the_shards(tmp_path, goldens):
    source = qwen_folder(tmp_path / "qwen", goldens)
    run(source, tmp_path / "shards", "qwen", max_shard_size=LIMIT)
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) == 3
    whole, split = (
        Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).state_dict()
        for folder in (source, tmp_path / "shards")
    )
    assert whole.keys() == split.keys()
    assert all(torch.equal(whole[name], split[name]) for name in whole)


@pytest.mark.parametrize(
    ("text", "size"),
    [("16MiB", 2**24), ("5GB", 5 * 10**9), ("1.5 kib", 1536), ("300B", 300), (" 2TB ", 2 * 10**12), ("1GiB", 2**30), ("7mb", 7 * 10**6)],
)
def test_sizes(text, size):
    assert parse_size(text, "--max-shard-size") == size


@pytest.mark.parametrize("text", ["16 bananas", "0", "0GB", "", "-5GB", "5", "MiB", "1e3MB", "5 G B", "nanGB", "0.1B", "٣GB"])
def test_bad_sizes(text):
    with pytest.raises(InputError, match="such as 16MiB or 5GB"):
        parse_size(text, "--max-shard-size")


# For the user


def test_the_painter_loads_what_the_command_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_checkpoint(Path("tiny"))
    assert dim("convert", "tiny", "shards", "--to", "dim", "--max-shard-size", "1MiB", "--dtype", "bfloat16")[0] == 0
    assert len(list(Path("shards").glob("model-*-of-00004.safetensors"))) == 4
    loaded = parameters(Sampler.from_pretrained("shards", dtype="float32").dim)
    for path, tensor in parameters(painter().dim).items():
        np.testing.assert_array_equal(np.asarray(tensor).astype(BF16), np.asarray(loaded[path]).astype(BF16), err_msg=path)
        assert loaded[path].dtype == np.float32


@pytest.mark.parametrize("options", [("--max-shard-size", "16 bananas"), ("--max-shard-size", "1kB"), ("--max-shard-size", "0")])
def test_a_bad_size_is_one_error_and_leaves_nothing(tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    tiny_checkpoint(Path("tiny"))
    assert "shard" in one_error(dim("convert", "tiny", "out", "--to", "dim", *options))
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
