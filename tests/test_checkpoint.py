"""Checkpoint folders: saved whole or not at all, read as they were stored, refused when they are damaged."""

import asyncio
import gc
import json
import logging
import threading
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
import pytest
from etils import epath
from flax import nnx

from dim_jax import checkpoint
from dim_jax.errors import InputError
from dim_jax.models import module
from dim_jax.storage.orbax import quiet_orbax
from dim_jax.storage.paths import as_path, read_json


class Net(nnx.Module):
    """Two layers."""

    def __init__(self, d: int = 4, *, rngs: nnx.Rngs):
        self.fc1, self.fc2 = nnx.Linear(3, d, rngs=rngs), nnx.Linear(d, 4, use_bias=False, rngs=rngs)


def load(path) -> dict[str, np.ndarray]:
    return dict(checkpoint.read(path))


@pytest.fixture
def net() -> Net:
    return Net(rngs=nnx.Rngs(0))


@pytest.fixture
def saved(net, tmp_path):
    checkpoint.save(tmp_path / "net", net, {"d": 4})
    return tmp_path / "net"


def assert_equal(a, b):
    a, b = (module.parameters(x) if isinstance(x, nnx.Module) else x for x in (a, b))
    assert a.keys() == b.keys()
    for path in a:
        np.testing.assert_array_equal(a[path], b[path])


def test_module_save_load_roundtrip(net, saved):
    arrays = load(saved)
    assert all(type(array) is np.ndarray for array in arrays.values())
    assert_equal(arrays, net)
    infos = checkpoint.abstract(saved)
    assert {path: (info.shape, info.dtype) for path, info in infos.items()} == {p: (a.shape, a.dtype) for p, a in arrays.items()}
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "weights"]
    assert read_json(saved / "config.json") == {"d": 4}
    assert checkpoint.is_checkpoint(saved)
    assert not checkpoint.is_checkpoint(saved / "weights")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_dtype_of_numpy_and_jax_is_stored_to_the_bit(tmp_path, dtype):
    arrays = {"n": np.random.default_rng(0).standard_normal((5, 7)).astype(jnp.dtype(dtype))}
    arrays |= {"j": jnp.asarray(arrays["n"]) * 2, "scalar": np.asarray(3, dtype)}
    checkpoint.save(tmp_path / "x", arrays, {})
    for path, array in checkpoint.read(tmp_path / "x"):
        assert (array.dtype, array.shape) == (jnp.dtype(dtype), arrays[path].shape)
        assert array.tobytes() == np.asarray(arrays[path]).tobytes()


def test_tensors_are_read_in_the_order_that_is_asked_for(saved, net):
    assert [path for path, _ in checkpoint.read(saved, ["fc2.kernel", "fc1.bias"])] == ["fc2.kernel", "fc1.bias"]
    assert_equal(dict(checkpoint.read(saved, ["fc1.bias"])), {"fc1.bias": net.fc1.bias[...]})


def test_what_is_no_checkpoint_is_refused(tmp_path, saved):
    for path in (tmp_path, tmp_path / "none", saved / "config.json"):
        with pytest.raises(InputError, match="is not a checkpoint folder"):
            load(path)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_damaged_checkpoints_are_refused(saved):
    for file in sorted((saved / "weights").rglob("*")):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(InputError, match=r"weights: (cannot be read|is damaged)"):
        load(saved)
    for file in (saved / "weights").iterdir():
        if file.is_file():
            file.unlink()
    with pytest.raises(InputError, match=r"weights: is damaged"):
        load(saved)
    gc.collect()  # Orbax leaves coroutines behind that nobody awaits: Python complains of them here, not in the test that is next


@pytest.mark.parametrize(("text", "message"), [(None, "cannot be read"), ("{", "is not a JSON file"), ("\xff", "is not a JSON file")])
def test_damaged_json_is_refused(tmp_path, text, message):
    if text is not None:
        (tmp_path / "x.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=rf"x.json: {message}"):
        read_json(tmp_path / "x.json")


def test_an_existing_output_stays(saved, net):
    with pytest.raises(InputError, match=r"net exists"):
        checkpoint.save(saved, {"a": np.zeros(2)}, {})
    assert_equal(load(saved), net)
    checkpoint.save(saved, {"a": np.zeros(2, np.float32)}, {}, overwrite=True)
    assert list(load(saved)) == ["a"]


def test_an_interrupted_save_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "GROUP", 1)

    def tensors():
        yield "a", np.zeros(2, np.float32)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), checkpoint.new_folder(tmp_path / "x") as folder:
        checkpoint.write(folder, tensors(), {})
    assert list(tmp_path.iterdir()) == []


def test_background_writes_on_full_disk_leave_no_files(tmp_path, monkeypatch):
    """As Orbax's do: they make the folder again if it was removed meanwhile."""
    writers = []

    def write(path):
        for i in range(10):
            time.sleep(0.03)
            Path(path).mkdir(parents=True, exist_ok=True)
            Path(path, str(i)).touch()

    def save(path, group):
        writers.append(threading.Thread(target=write, args=[path]))
        writers[0].start()
        raise ValueError("os_error_code='28'")

    monkeypatch.setattr(checkpoint.ocp.partial, "save", save)
    with pytest.raises(InputError, match="no space"):
        checkpoint.save(tmp_path / "x", {"a": np.zeros(2, np.float32)}, {})
    writers[0].join()
    assert list(tmp_path.iterdir()) == []


def test_orbax_shutdown_warnings_are_silenced(saved, caplog, recwarn):
    """Its threads call event loops that it has closed, and drop tasks whose error was raised; afterwards all is heard again."""
    before = asyncio.get_event_loop_policy()
    with quiet_orbax():
        loop = asyncio.new_event_loop()
        logging.getLogger("absl").error("a thread of Orbax")
    loop.call_exception_handler({"message": "never retrieved: site-packages/orbax/checkpoint/a.py:1"})
    loop.close()
    loop.call_soon_threadsafe(print)
    load(saved)
    assert not caplog.records
    loop.call_exception_handler({"message": "never retrieved: site-packages/other/a.py:1"})
    logging.getLogger("absl").error("another library")
    assert len(caplog.records) == 2
    assert asyncio.get_event_loop_policy() is before


def test_tensors_are_saved_group_by_group(tmp_path, monkeypatch):
    """A tensor is asked for only after the ones before it were handed to Orbax."""
    monkeypatch.setattr(checkpoint, "GROUP", 100)
    saves = []
    save = checkpoint.ocp.partial.save
    monkeypatch.setattr(checkpoint.ocp.partial, "save", lambda path, group: saves.append(list(group)) or save(path, group))
    seen = []

    def tensors():
        for i, size in enumerate((10, 10, 10, 30, 5)):
            seen.append(len(saves))
            yield f"t{i}", np.full(size, i, np.float32)

    with checkpoint.new_folder(tmp_path / "x") as folder:
        checkpoint.write(folder, tensors(), {})
    assert saves == [["t0", "t1", "t2"], ["t3"], ["t4"]]
    assert seen == [0, 0, 0, 1, 2]
    assert [path for path, _ in checkpoint.read(tmp_path / "x")] == ["t0", "t1", "t2", "t3", "t4"]


def test_groups_keep_the_order_and_the_limit(monkeypatch):
    monkeypatch.setattr(checkpoint, "GROUP", 10)
    assert list(checkpoint.groups({"a": 4, "b": 6, "c": 1, "d": 50, "e": 2})) == [["a", "b"], ["c"], ["d"], ["e"]]
    assert list(checkpoint.groups({})) == []


def test_checkpoint_holds_tokenizer_and_manifest(tmp_path, net):
    (tmp_path / "tokenizer.json").write_text("{}")
    checkpoint.save(tmp_path / "x", net, {}, manifest={"format": "dim"}, tokenizer=[tmp_path / "tokenizer.json"])
    assert [file.name for file in checkpoint.tokenizer_files(tmp_path / "x")] == ["tokenizer.json"]
    assert json.loads((tmp_path / "x" / "manifest.json").read_text()) == {"format": "dim"}


ODD = ("[draft]", "]", "a[", "*", "a?b", "{x}", " a ", "100%2F#", "ü", "a\nb", "**", "x.orbax-checkpoint-tmp")


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("inner", ["", "m"])
def test_folders_may_have_any_name(tmp_path, name, inner):
    folder = tmp_path / name / inner
    checkpoint.save(folder, {"a": np.arange(3)}, {})
    assert list(load(folder)["a"]) == [0, 1, 2]


@pytest.mark.parametrize("name", ["a\\b", "gs:", b"\xff".decode(errors="surrogateescape")])
def test_a_name_that_tensorstore_mistakes_is_refused(tmp_path, name):
    with pytest.raises(InputError, match="Rename the folder"):
        checkpoint.save(tmp_path / name / "m", {"a": np.arange(3)}, {})
    assert not list((tmp_path / name).iterdir())


@pytest.mark.parametrize("name", ["[x]", "*", "a?b", "#1"])
def test_a_pattern_is_no_folder_of_a_bucket(bucket, name):
    """gcsfs would remove whatever fits it."""
    (as_path(f"{bucket}/patterns/a1b/m") / "kept").write_text("kept")
    with pytest.raises(InputError, match="may not contain"):
        checkpoint.save(f"{bucket}/patterns/{name}/m", {"a": np.arange(3)}, {}, overwrite=True)
    assert (as_path(f"{bucket}/patterns/a1b/m") / "kept").read_text() == "kept"


def test_unmerged_process_shards_are_merged_on_read(saved, net, monkeypatch, tmp_path):
    """As Orbax left it where its own search for its files found none."""
    with monkeypatch.context() as patch:
        patch.setattr(type(epath.Path()), "glob", lambda folder, pattern: iter(()))
        with pytest.raises(InputError, match="never joined"):
            checkpoint.save(tmp_path / "other", net, {})
        assert not (tmp_path / "other").exists()
        patch.setattr(checkpoint, "abstract", lambda folder: dict.fromkeys(module.parameters(net)))
        checkpoint.save(tmp_path / "other", net, {})
    with pytest.raises(InputError, match=r"checkpoint\.join"):
        load(tmp_path / "other")
    checkpoint.join(tmp_path / "other")
    assert_equal(load(tmp_path / "other"), net)


def test_tensors_that_are_not_there_are_no_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "write_weights", lambda folder, tensors: ocp.save(str(folder / "weights"), dict(list(tensors)[:1])))
    with pytest.raises(InputError, match=r"1 written tensors cannot be read back \(b"):
        checkpoint.save(tmp_path / "x", {"a": np.arange(3), "b": np.arange(3)}, {})
    assert not (tmp_path / "x").exists()
