"""Training from a cache: the losses of training online, killed and continued writing, refusals with the reason."""

import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from dim_jax import caching, checkpoint
from dim_jax.aot.compiling import cached_batch
from dim_jax.data import cache
from dim_jax.data.records import Records, new_records
from dim_jax.datasets.layouts.pairs import Pair, Picture, encode_webp, write_pairs
from dim_jax.datasets.prepare import prepare
from dim_jax.errors import InputError
from dim_jax.models.module import parameters
from dim_jax.processing.buckets import Bucket
from dim_jax.storage.paths import AnyPath, as_path, files_below, upload
from dim_jax.weights import lazy
from dim_jax.weights.convert import open_weights
from tests.cache_fixtures import PARTS, Run, command, write
from tests.painter_fixtures import dim, tiny_checkpoint
from tests.test_several import several
from tests.test_train import CONFIGS, last_error, log

pytest.importorskip("array_record")
PICTURES, PAIRS = 12, 22
BUCKET = Bucket(32, 32, 64)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a checkpoint, data, and the cache of a run in float32, in shards of about four edits."""
    folder = tmp_path_factory.mktemp("cache")
    tiny_checkpoint(folder / "tiny")
    (folder / "raw").mkdir()
    rng = np.random.default_rng(0)
    pictures = [
        Picture("own", str(n), f"thing {n}", "test" if n % 6 == 5 else "train", (f"A {n}.", f"An own {n}."),
                encode_webp(np.asarray(Image.fromarray(rng.integers(0, 256, (3, 3, 3), np.uint8)).resize((32, 32)))))
        for n in range(PICTURES)
    ]  # fmt: skip
    pairs = [Pair(n % 5, 6 + n % 4, "rule", tuple(f"Edit {n} {way}." for way in "abc"[: 1 + n % 3]), "") for n in range(PAIRS)]
    write_pairs(folder / "raw", pictures, [*pairs, Pair(5, 11, "rule", ("Edit.",), "")])
    prepare(folder / "raw", folder / "data")
    write(folder, "made")
    return folder


@pytest.fixture(scope="module")
def online(place) -> np.ndarray:
    return Run(place).losses()


def test_cached_training_logs_same_losses_as_online(place, online):
    assert len(set(online)) == 10
    assert len(list((place / "made").glob("edit-data/*.array_record"))) == 6
    run = Run(place, data__cache=str(place / "made"))
    assert {path.split(".")[0] for path in parameters(run.model)} == {"connector", "sana"}
    np.testing.assert_allclose(run.losses(), online, rtol=1e-6)
    assert [run.loader(n).keys for n in range(3)] == [Run(place).loader(n).keys for n in range(3)]


def test_int8_changes_the_losses_a_little(place, online):
    folder = write(place, "int8", "int8")
    found = Run(place, data__cache=str(folder)).losses()
    np.testing.assert_allclose(found, online, rtol=2e-3)
    assert (found != online).any()


def test_int8_is_within_half_a_step_of_its_channel():
    rng = np.random.default_rng(0)
    hidden = (rng.normal(size=(50, 16)) * np.geomspace(1e-3, 1e3, 16)).astype(np.float32)
    hidden[:, 3] = 0
    stored = cache.quantize(hidden, "int8")
    assert stored.hidden.dtype == np.int8
    assert stored.scale is not None
    off = np.abs(stored.hidden * stored.scale - hidden)
    assert (off <= np.abs(hidden).max(0) / 127 / 2 * 1.0001).all()
    exact = hidden.astype(ml_dtypes.bfloat16)
    assert (cache.quantize(exact, "bfloat16").hidden == exact).all()
    assert (cache.quantize(exact, "float32").hidden == exact.astype(np.float32)).all()


def test_a_run_from_a_cache(place, bucket):
    """In a bucket. Its model has all parts, though no step had the frozen ones."""
    how = {"data__mix__caption": "0.0"}
    cached = {"data__cache": f"{bucket}/made"}
    upload(place / "made", as_path(f"{bucket}/made"))
    code, text = dim(*command(place, "train", "--workdir", str(place / "run"), "--steps", "2", **how, **cached))
    assert code == 0, text
    assert "learn, 0 are frozen" in text
    assert np.isfinite([line["loss"] for line in log(place / "run")]).all()
    assert not (place / "run/sheets").exists()
    before, after = (dict(open_weights(place / name).stream()) for name in ("tiny", "run/model"))
    same = {path for path, tensor in before.items() if np.array_equal(tensor, after[path])}
    assert {path for path in before if path.startswith(("encoder.", "autoencoder."))} <= same
    assert same != set(before)
    changed = last_error(dim(*command(place, "train", "--workdir", str(place / "run"), "--steps", "3", **how)))
    assert "data.cache was" in changed


def test_the_compiler_sees_the_shapes_of_a_cache(place):
    cached, run = Run(place, data__cache=str(place / "made")), Run(place)
    batches = cached_batch(run.objective, run.loader(0).batch), cached.loader(0).batch
    shapes = [[(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(batch)] for batch in batches]
    assert shapes[0] == shapes[1]


KILLED = """
import os, signal, sys
from dim_jax.cli.main import main
from dim_jax.data.records import NewRecords
write, written = NewRecords.write, 0
def write_or_die(self, record):
    global written
    written += 1
    if written == 15:
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, record)
NewRecords.write = write_or_die
sys.argv[0] = "dim"
main()
"""


def test_a_killed_call_is_continued(place):
    """Killed while it writes a shard; those before it stay as they are."""
    folder = place / "killed"
    arguments = command(place, "cache", "--into", str(folder), "--shard-size", "36KB")
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], cwd=CONFIGS.parent, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    finished = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*.array_record")}
    layouts = [cache.read_shard_layout(folder / part, rows) for part, rows in (("edit-data", PAIRS), ("caption-data", 10))]
    wanted = {layout.path(shard) for layout in layouts if layout for shard in range(layout.shards)}
    assert len(finished) > 0
    assert finished.keys() < wanted
    assert list(folder.rglob("*.partial"))
    assert "dim cache --config" in last_error(dim(*command(place, "train", "--workdir", str(place / "early"), data__cache=str(folder))))

    code, text = dim(*arguments)
    assert code == 0, text
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in finished} == finished
    assert set(folder.rglob("*.array_record")) == wanted
    assert not list(folder.rglob("*.partial"))
    found, known = (Run(place, data__cache=str(one)).loader for one in (folder, place / "made"))
    for number in range(10):
        for array, other in zip(*(jax.tree.leaves(loader(number).batch) for loader in (found, known)), strict=True):
            np.testing.assert_allclose(array, other, rtol=1e-4, atol=1e-5)


def test_a_cache_in_a_bucket_is_continued(place, bucket, monkeypatch):
    """Cut off by hand; the losses are those from a cache on this machine."""
    folder, finished = f"{bucket}/continued", list[AnyPath]()
    arguments = command(place, "cache", "--into", folder, "--shard-size", "72KB")

    def cut_off(layout, shard, rows):
        if len(finished) == 3:
            raise KeyboardInterrupt
        cache.write_shard(layout, shard, rows)
        finished.append(layout.path(shard))

    with monkeypatch.context() as patch:
        patch.setattr(caching, "write_shard", cut_off)
        assert dim(*arguments)[0] == 130
    before = [path.stat() for path in finished]
    with pytest.raises(InputError, match=rf"lacks . of . shards, such as {folder}/.*dim cache --config ... --into {folder}"):
        Run(place, data__cache=folder)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
        assert f"a shard of {folder}, put together on this machine: no space in" in last_error(dim(*arguments))
    code, text = dim(*arguments)
    assert code == 0, text
    assert [path.stat() for path in finished] == before
    found, known = (Run(place, data__cache=one).losses() for one in (folder, str(place / "made")))
    np.testing.assert_allclose(found, known, rtol=1e-6)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"data__resolution": "64"}, "data.resolution is 32 there, 64 here"),
        ({"model__dtype": "bfloat16"}, "model.dtype is 'float32' there, 'bfloat16' here"),
        ({"data__text": "blueprint"}, "data.text is 'instruction' there, 'blueprint' here"),
        ({"data__shift": "4"}, "data.shift is 4"),
        ({"data__mirrored": "('gender',)"}, "data.mirrored is ('gender',)"),
        ({"frozen": "('autoencoder',)", "trainable": "('encoder', 'connector', 'sana')"}, "config.trainable has encoder"),
    ],
)
def test_cache_of_another_config_is_refused(place, more, says, tmp_path):
    assert says in last_error(dim(*command(place, "train", "--workdir", str(tmp_path), data__cache=str(place / "made"), **more)))
    if "there, " in says:
        assert says in last_error(dim(*command(place, "cache", "--into", str(place / "made"), **more)))


def test_cache_of_other_weights_is_refused(place):
    """One number of the encoder is another; the format of the same weights does not matter."""
    weights = safetensors.numpy.load_file(place / "tiny/model.safetensors")
    (place / "changed").mkdir()
    for path in (place / "tiny").iterdir():
        (place / "changed" / path.name).write_bytes(path.read_bytes())
    name = next(name for name in sorted(weights) if name.startswith("mllm.") and "layers.1" in name)
    weights[name].flat[0] += 1e-3
    safetensors.numpy.save_file(weights, place / "changed/model.safetensors")
    made = str(place / "made")
    text = last_error(dim(*command(place, "train", "--workdir", str(place / "w"), data__cache=made, init__encoder=str(place / "changed"))))
    assert "encoder weights is" in text
    assert "autoencoder" not in text
    assert dim("convert", str(place / "tiny"), str(place / "orbax"))[0] == 0
    Run(place, data__cache=made, init__encoder=str(place / "orbax"))


def test_a_damaged_shard_is_named(place):
    folder = place / "damaged"
    shutil.copytree(place / "made", folder)
    path = sorted((folder / "edit-data").glob("*.array_record"))[1]
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    run = Run(place, data__cache=str(folder))
    with pytest.raises(InputError, match=r"00001-of-00006.array_record: damaged .* Remove this file; call dim cache again"):
        [run.loader(n) for n in range(10)]
    path.unlink()
    with pytest.raises(InputError, match=r"lacks 1 of 6 shards, such as .*00001-of-00006"):
        Run(place, data__cache=str(folder))


def test_what_is_no_cache_is_refused(place):
    """A shard with a record of another program, or of another cache; a part.json or cache.json that somebody edited."""
    folder = place / "other"
    shutil.copytree(place / "made", folder)
    path = sorted((folder / "edit-data").glob("*.array_record"))[0]
    good = Records(path, missing="", damaged="").all()
    arrays, notes = cache.unpack(good[0])
    small = {name: array[:1] for name, array in arrays.items()}
    run, others = Run(place, data__cache=str(folder)), "damaged .its records are not those of a cache"
    bad = {b"": others, b"[]": others, cache.pack({"target": np.ones((2, 2))}): others, cache.pack(small, notes): "other shapes"}
    for record, says in bad.items():
        with new_records(path, compressed=False) as file:
            [file.write(one) for one in (record, *good[1:])]
        source = cache.CachedSource(*run.loader.mixture[1].source.__reduce__()[1])
        with pytest.raises(InputError, match=says):
            run.loader.reader.collate([run.loader.reader.make_sample(source[row], np.random.default_rng(0)) for row in (0, 1)], BUCKET)
    for name, content, says in (
        (cache.PART_FILE, '{"rows": 21, "shard_rows": 0}', "part.json: is damaged"),
        (cache.PART_FILE, "[]", "part.json: is not a JSON object"),
        (f"../{cache.CACHE_FILE}", "[]", "cache.json: is not a JSON object"),
    ):  # fmt: skip
        (folder / "edit-data" / name).write_text(content)
        with pytest.raises(InputError, match=says):
            Run(place, data__cache=str(folder))


def test_rows_with_other_texts_are_refused(place):
    run = Run(place, data__cache=str(place / "made"))
    example = run.loader.mixture[1].source[3]
    with pytest.raises(InputError, match=r"row 4 of the source .* had other texts when it was cached"):
        example.states("Something else.")


def test_too_little_space_is_refused_before_anything_is_computed(place, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(InputError, match=r"missing shards of .*: no space .*4\d\d KiB are needed, 1000 B are free.*--dtype int8"):
        write(place, "full")
    assert not list((place / "full").rglob("*.array_record"))


def test_failed_first_call_does_not_bind_later_calls(place, monkeypatch):
    """It was of other rows, another size and another way to store them."""
    raw, few, grey = place / "few" / "raw", place / "few" / "data", encode_webp(np.full((32, 32, 3), 99, np.uint8))
    raw.mkdir(parents=True)
    pictures = [Picture("own", str(n), f"thing {n}", "train", (f"A {n}.",), grey) for n in range(6)]
    write_pairs(raw, pictures, [Pair(n, 5 - n, "rule", ("Edit.",), "") for n in range(3)])
    prepare(raw, few)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
        with pytest.raises(InputError, match="no space"):
            write(place, "again", "int8", data__source=str(few), data__text="blueprint")
    assert (place / "again" / "cache.json").exists()
    write(place, "again")
    there, again = (sorted(path for path in (place / name).rglob("*") if path.is_file()) for name in ("made", "again"))
    assert [path.name for path in again] == [path.name for path in there]
    for path, other in zip(there, again, strict=True):
        assert path.suffix != ".json" or path.read_text() == other.read_text()


@pytest.mark.parametrize("form", ["tiny", "tiny-orbax"])
def test_every_tensor_is_read_once(place, tmp_path, monkeypatch, form):
    """Parameters that learn and those that are frozen may come from one large file, far away."""
    if form == "tiny-orbax" and not (place / form).exists():
        assert dim("convert", str(place / "tiny"), str(place / form))[0] == 0
    counts, published, ours = Counter(), lazy.from_loader, checkpoint._load
    monkeypatch.setattr(
        "dim_jax.weights.files.from_loader", lambda infos, load: published(infos, lambda name: (counts.update([name]), load(name))[1])
    )
    monkeypatch.setattr(checkpoint, "_load", lambda folder, wanted: (counts.update(list(wanted)), ours(folder, wanted))[1])
    init = {f"init__{part}": str(place / form) for part in PARTS}
    code, text = dim(*command(place, "train", "--workdir", str(tmp_path / "run"), "--steps", "1", **init))
    assert code == 0, text
    assert set(counts.values()) == {1}
    before, after = counts.copy(), open_weights(tmp_path / "run/model")
    assert len(before) >= len(after.tensors)
    counts.clear()
    code, text = dim(*command(place, "train", "--workdir", str(tmp_path / "run"), "--steps", "2", **init))
    assert code == 0, text
    assert set(counts.values()) == {1}
    assert len(counts) < len(before)  # what learns is in the state


def test_cache_size_estimate_equals_written_bytes(place, capsys):
    """But for what ArrayRecord puts around records, and at the end of a file."""
    write(place, "made")
    said = capsys.readouterr().err
    assert "6 shards; 0 shards (0 B) are missing" in said
    estimate = 1024 * sum(float(number) for number in re.findall(r"each: ([\d.]+) KiB in", said))
    files = [Records(path, missing="", damaged="") for path in (place / "made").rglob("*.array_record")]
    written = sum(len(record) for file in files for record in file.all())
    assert 0.9 * estimate < written < estimate


def test_a_part_that_only_a_curriculum_names_is_cached_too(place):
    phases = {"data__mix__edit": "1.0", "data__mix__caption": "0.0", "data__curriculum": "((2, {'edit': 0.5, 'caption': 0.5}),)"}
    folder = write(place, "curriculum", **phases)
    assert sorted(path.parent.name for path in folder.rglob(cache.PART_FILE)) == ["caption-data", "edit-data"]


WRITERS = """
import os, sys
from dim_jax import caching, checkpoint
from dim_jax.cli.main import main
write_shard, note = caching.write_shard, sys.argv.pop(1)
def noted(layout, shard, rows):
    write_shard(layout, shard, rows)
    with open(note, "a") as file:
        file.write(f"{os.environ['JAX_PROCESS_ID']} {layout.path(shard)}\\n")
caching.write_shard = noted
sys.argv[0] = "dim"
main()
"""


@pytest.mark.parametrize("remote", [False, True])
def test_two_processes_share_the_shards(place, online, tmp_path, bucket, remote):
    """Each writes half of those that are missing, here and in a bucket; what they print is printed once."""
    folder = as_path(f"{bucket}/shared") if remote else place / "shared"
    upload(place / "made", folder) if remote else shutil.copytree(place / "made", folder)
    missing = files_below(folder, "*.array_record")[1:]
    for path in missing:
        path.unlink()
    arguments = command(place, "cache", "--into", str(folder), "--shard-size", "72KB")
    with several(tmp_path / "output", 2, 1, "-c", WRITERS, str(tmp_path / "written"), *arguments) as launched:
        code, said = launched.ended()
    assert code == 0, said
    assert said.count(f"wrote {folder}\n") == said.count(f"edit:{place / 'data'}: ") == 1, said
    written = [line.split() for line in (tmp_path / "written").read_text().splitlines()]
    assert sorted(name for _, name in written) == sorted(str(path) for path in missing)
    assert {number for number, _ in written} == {"0", "1"}
    np.testing.assert_allclose(Run(place, data__cache=str(folder)).losses(), online, rtol=1e-6)
