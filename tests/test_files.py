"""Published files: read and written as the libraries do, and every damaged one is refused with its name."""

import json
import os
import pickle
import sys
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch

from dim_jax.checkpoint import TensorInfo
from dim_jax.errors import InputError
from dim_jax.storage.folders import new_folder
from dim_jax.weights.arrays import same_bits
from dim_jax.weights.files import DTYPES, SafetensorsWriter, find_safetensors, open_safetensors
from dim_jax.weights.pth import open_pth

TENSORS = st.dictionaries(
    st.text("ab.01é", min_size=1, max_size=6), st.tuples(st.sampled_from(list(DTYPES)), st.lists(st.integers(0, 4), max_size=3)), max_size=6
)
SAME_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)


def save(path: Path, names: tuple[str, ...] = ("a", "b")) -> dict[str, np.ndarray]:
    """A file of a few small tensors."""
    tensors = {name: np.arange(6, dtype=np.float32).reshape(2, 3) + i for i, name in enumerate(names)}
    save_file(tensors, path, {"format": "pt"})
    return tensors


def sharded(folder: Path, shards: dict[str, tuple[str, ...]], weight_map: dict[str, str] | None = None) -> None:
    """A folder of shards (file -> names) with an index, which is right unless another one is given."""
    for file, names in shards.items():
        save(folder / file, names)
    weight_map = weight_map or {name: file for file, names in shards.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


# safetensors


@SAME_FOLDER
@given(described=TENSORS)
def test_files_are_read_and_written_as_the_library_does(tmp_path, described):
    rng = np.random.default_rng(0)
    tensors = {name: np.asarray(rng.standard_normal(shape), DTYPES[dtype]) for name, (dtype, shape) in described.items()}
    save_file(tensors, tmp_path / "library", {"format": "pt"})
    infos = {name: TensorInfo(tuple(shape), DTYPES[dtype]) for name, (dtype, shape) in described.items()}
    with SafetensorsWriter(tmp_path / "ours", infos) as writer:
        for name in reversed(list(tensors)):
            writer.write(name, tensors[name])
    written = load_file(tmp_path / "ours")
    assert written.keys() == tensors.keys()
    assert all(same_bits(written[name], tensor) for name, tensor in tensors.items())
    file = open_safetensors(tmp_path / "library")
    assert dict(file) == infos
    assert all(same_bits(file.load(name), tensor) for name, tensor in tensors.items())


def test_reading_maps_and_does_not_copy(tmp_path):
    save(tmp_path / "x.safetensors")
    tensor = open_safetensors(tmp_path / "x.safetensors").load("a")
    assert isinstance(tensor.base, np.memmap) or isinstance(tensor, np.memmap)
    assert not tensor.flags.writeable


@SAME_FOLDER
@given(cut=st.integers(0, 10_000))
def test_any_truncated_file_is_refused(tmp_path, cut):
    whole = tmp_path / "whole.safetensors"
    save(whole)
    data = whole.read_bytes()
    short = tmp_path / "short.safetensors"
    short.write_bytes(data[: cut % len(data)])
    with pytest.raises(InputError, match=r"short.safetensors.*etch"):
        open_safetensors(short)
    short.write_bytes(data + b"x")
    with pytest.raises(InputError, match=r"says \d+ bytes, but the file has \d+"):
        open_safetensors(short)


def with_header(path: Path, header: bytes, data: bytes = b"") -> Path:
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b'{"a": [', "header is damaged"),
        (b"[1, 2]", "header is damaged"),
        (b"\xff\xfe", "header is not text"),
        (b'{"a":{"dtype":"F32","shape":[2]}}', "header is damaged"),
        (b'{"a":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}}', r"a \(F8_E4M3\)"),
        (
            b'{"a":{"dtype":"I64","shape":[],"data_offsets":[0,8]},"b":{"dtype":"BOOL","shape":[],"data_offsets":[8,9]}}',
            r"a \(I64\), b \(BOOL\)",
        ),
        (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', "a F32"),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', "a F32"),
        (
            b'{"a":{"dtype":"F16","shape":[1],"data_offsets":[0,2]},"a":{"dtype":"F16","shape":[1],"data_offsets":[2,4]}}',
            "names these twice: a",
        ),
    ],
)
def test_damaged_headers_are_refused(tmp_path, header, message):
    with pytest.raises(InputError, match=message) as error:
        open_safetensors(with_header(tmp_path / "bad.safetensors", header, bytes(8)))
    assert "bad.safetensors" in str(error.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            open_safetensors(path)


def write(path: Path, sizes: tuple[tuple[str, int], ...]) -> None:
    with SafetensorsWriter(path, dict.fromkeys("ab", TensorInfo((2,), DTYPES["F32"]))) as writer:
        for name, size in sizes:
            writer.write(name, np.zeros(size, np.float32))


def test_writer_refuses_wrong_use(tmp_path):
    for sizes, message in ((("a", 3),), r"a \(3,\)"), ((("a", 2), ("a", 2)), "once"), ((("a", 2),), "never written: b"):
        with pytest.raises(ValueError, match=message):
            write(tmp_path / "x", sizes)


def test_writer_changes_layout_and_dtype(tmp_path, monkeypatch):
    """Transposed views are written in C order, in pieces, and cast to the file's dtype."""
    monkeypatch.setattr("dim_jax.weights.files.CHUNK", 1000)
    tensor = np.random.default_rng(0).standard_normal((300, 200), np.float32).T
    with SafetensorsWriter(tmp_path / "x", {"a": TensorInfo((200, 300), DTYPES["BF16"])}) as writer:
        writer.write("a", tensor)
    assert same_bits(open_safetensors(tmp_path / "x").load("a"), np.ascontiguousarray(tensor.astype(ml_dtypes.bfloat16)))


# Folders


def test_a_folder_is_one_file_or_its_shards(tmp_path):
    assert find_safetensors(tmp_path) == {}
    save(tmp_path / "one.safetensors")
    assert list(find_safetensors(tmp_path)) == ["one.safetensors"]
    (tmp_path / "one.safetensors").unlink()
    sharded(tmp_path, {"m-1-of-2.safetensors": ("a",), "m-2-of-2.safetensors": ("b", "c")})
    shards = find_safetensors(tmp_path)
    assert {file: list(tensors) for file, tensors in shards.items()} == {"m-1-of-2.safetensors": ["a"], "m-2-of-2.safetensors": ["b", "c"]}


@pytest.mark.parametrize(
    ("weight_map", "remove", "message"),
    [
        (None, "m-2-of-2.safetensors", "missing: m-2-of-2.safetensors"),
        ({"a": "m-1-of-2.safetensors"}, None, "does not name m-2-of-2.safetensors"),
        ({"a": "m-1-of-2.safetensors", "b": "m-2-of-2.safetensors"}, None, "c in m-2-of-2.safetensors is not in the index"),
        (
            {"a": "m-1-of-2.safetensors", **dict.fromkeys("bcd", "m-2-of-2.safetensors")},
            None,
            "d should be in m-2-of-2.safetensors, it is in no shard",
        ),
        ({"a": "m-2-of-2.safetensors", **dict.fromkeys("bc", "m-2-of-2.safetensors")}, None, "does not name m-1-of-2"),
        (
            {"b": "m-1-of-2.safetensors", **dict.fromkeys("ac", "m-2-of-2.safetensors")},
            None,
            "b should be in m-1-of-2.* a should be in m-2-of-2",
        ),
        (None, "model.safetensors.index.json", "shards without their index"),
    ],
)
def test_shards_that_disagree_with_their_index_are_refused(tmp_path, weight_map, remove, message):
    sharded(tmp_path, {"m-1-of-2.safetensors": ("a",), "m-2-of-2.safetensors": ("b", "c")}, weight_map)
    if remove:
        (tmp_path / remove).unlink()
    with pytest.raises(InputError, match=message):
        find_safetensors(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    sharded(tmp_path, {"m-1-of-2.safetensors": ("a", "b"), "m-2-of-2.safetensors": ("b", "c")})
    with pytest.raises(InputError, match=r"b is in m-1-of-2.safetensors and in m-2-of-2.safetensors"):
        find_safetensors(tmp_path)


NESTED = "[" * 100_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not an index of shards"),
        ("[]", "is not an index of shards"),
        ('{"weight_map": [1]}', "is not an index of shards"),
        ('{"metadata": {}}', "is not an index of shards"),
        ('{"weight_map": null}', "is not an index of shards"),
        ('{"weight_map": {}}', "is not an index of shards"),
        ('{"weight_map": {"a": null}}', "is not an index of shards"),
        ('{"weight_map": {"a": 1}}', "is not an index of shards"),
        ('{"weight_map": {"a": ["m-1-of-2.safetensors"]}}', "is not an index of shards"),
        ('{"weight_map": {"a": {"b": "m-1-of-2.safetensors"}, "c": "m-2-of-2.safetensors"}}', "is not an index of shards"),
        (NESTED, "is not an index of shards"),
        ('{"weight_map": {"a": "x", "a": "y"}}', "these twice: a"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "outside of its folder: /etc/passwd"),
        ('{"weight_map": {"a": "x/../../m.safetensors"}}', "outside of its folder"),
        ('{"weight_map": {"a": "a\\u0000b", "b": "", "c": "\\ud800"}}', "are missing"),
        ('{"weight_map": {"é": "m"}}'.encode("latin-1"), "is not in UTF-8"),
    ],
)
def test_a_damaged_index_is_refused(tmp_path, content, message):
    (tmp_path / "model.safetensors.index.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        find_safetensors(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_an_index_may_be_in_any_encoding_of_json(tmp_path, encoding):
    sharded(tmp_path, {"m-1-of-2.safetensors": ("a",), "m-2-of-2.safetensors": ("b", "c")})
    index = tmp_path / "model.safetensors.index.json"
    index.write_bytes(index.read_text().encode(encoding))
    assert [list(tensors) for tensors in find_safetensors(tmp_path).values()] == [["a"], ["b", "c"]]


@pytest.mark.parametrize("name", ["model.fp16-0000{}-of-00002.safetensors", "model-0000{}-of-00002.fp16.safetensors"])
def test_shards_of_a_variant(tmp_path, name):
    sharded(tmp_path, {name.format(1): ("a",), name.format(2): ("b", "c")})
    index = tmp_path / "model.safetensors.index.json"
    index = index.rename(index.with_name("model.safetensors.index.fp16.json"))
    assert len(find_safetensors(tmp_path)) == 2
    index.unlink()
    with pytest.raises(InputError, match="shards without their index"):
        find_safetensors(tmp_path)


def test_several_checkpoints_in_a_folder_are_refused(tmp_path):
    save(tmp_path / "one.safetensors")
    save(tmp_path / "two.safetensors")
    with pytest.raises(InputError, match=r"several checkpoints \(one.safetensors, two.safetensors\)"):
        find_safetensors(tmp_path)


# .pth


@pytest.mark.parametrize("nested", [False, True])
def test_pth_files_are_read_as_torch_reads_them(tmp_path, nested):
    tensors = {str(dtype): torch.arange(6).reshape(2, 3).to(dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)}
    tensors["strided"] = torch.arange(6.0).reshape(2, 3).T
    tensors["scalar"] = torch.tensor(2.5)
    torch.save({"state_dict": tensors, "epoch": 3} if nested else tensors, tmp_path / "x.pth")
    file = open_pth(tmp_path / "x.pth")
    assert set(file) == set(tensors)
    for name, tensor in tensors.items():
        ours = file.load(name)
        assert (file[name].shape, ours.shape) == (tuple(tensor.shape),) * 2
        np.testing.assert_array_equal(ours.astype(np.float32), tensor.float().numpy())


class Code:
    """Unpickling this would make a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("plain", [False, True])
def test_pickle_code_is_never_executed(tmp_path, plain):
    trap, file = tmp_path / "trap", tmp_path / "evil.pth"
    if plain:
        file.write_bytes(pickle.dumps({"a": Code(trap)}))
    else:
        torch.save({"a": torch.zeros(2), "b": Code(trap)}, file)
    with pytest.raises(InputError, match=r"evil.pth"):
        open_pth(file)
    assert not trap.exists()


def test_pth_files_that_are_no_dictionary_of_tensors_are_refused(tmp_path):
    cases = {
        "list": ([torch.zeros(2)], "found list"),
        "number": ({"a": torch.zeros(2), "b": 3}, r"not tensors: b \(int\)"),
        "integers": ({"a": torch.zeros(2, dtype=torch.int64)}, r"a \(torch.int64\)"),
        "empty": ({}, "it must be a dictionary of tensors"),
    }
    for name, (content, message) in cases.items():
        torch.save(content, tmp_path / name)
        with pytest.raises(InputError, match=message):
            open_pth(tmp_path / name)


def test_truncated_and_foreign_pth_files_are_refused(tmp_path):
    torch.save({"a": torch.zeros(1000)}, tmp_path / "whole.pth")
    data = (tmp_path / "whole.pth").read_bytes()
    for size in (0, 1, 100, len(data) // 2, len(data) - 1):
        (tmp_path / "short.pth").write_bytes(data[:size])
        with pytest.raises(InputError, match=r"short.pth"):
            open_pth(tmp_path / "short.pth")
    with zipfile.ZipFile(tmp_path / "other.pth", "w") as other:
        other.writestr("readme", "no weights")
    for name in ("other.pth", "none.pth"):
        with pytest.raises(InputError, match=name):
            open_pth(tmp_path / name)


def test_without_torch_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match=r"pip install 'dim_jax\[torch\]'"):
        open_pth(tmp_path / "x.pth")


# Output folders


def interrupted(target: Path) -> None:
    with new_folder(target) as folder:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "deep" / "out"
    with pytest.raises(KeyboardInterrupt):
        interrupted(target)
    assert list(target.parent.iterdir()) == []
    with new_folder(target) as folder:
        (folder / "a.safetensors").write_text("1")
        assert not target.exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["deep", "out", "a.safetensors"]


def test_an_existing_output_is_only_replaced_when_asked_and_when_it_is_a_checkpoint(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "model.safetensors").write_text("old")
    with pytest.raises(InputError, match=r"out exists.*--overwrite"), new_folder(target):
        pass
    with pytest.raises(RuntimeError), new_folder(target, overwrite=True):
        raise RuntimeError
    assert (target / "model.safetensors").read_text() == "old"
    with new_folder(target, overwrite=True) as folder:
        (folder / "new").write_text("new")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "new"]
    with pytest.raises(InputError, match=r"not a checkpoint folder, so it is not overwritten"), new_folder(target, overwrite=True):
        pass
    assert (target / "new").exists()


def test_too_little_space_is_known_before_anything_is_written(tmp_path):
    with (
        pytest.raises(InputError, match=r"out: no space in .* \(1024 TiB are needed, .* are free\)"),
        new_folder(tmp_path / "out", num_bytes=2**50),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_an_input_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made"), new_folder(tmp_path / "file" / "out"):
        pass


def test_torch_reads_what_we_write(tmp_path):
    with SafetensorsWriter(tmp_path / "x.safetensors", {"a": TensorInfo((2, 2), DTYPES["BF16"])}) as writer:
        writer.write("a", np.array([[1, 2], [3, 4]], ml_dtypes.bfloat16))
    assert torch.equal(load_torch(tmp_path / "x.safetensors")["a"], torch.tensor([[1, 2], [3, 4]], dtype=torch.bfloat16))
