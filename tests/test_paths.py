"""A bucket in place of a folder: runs, checkpoints, conversions; and the paths that are refused."""

from pathlib import Path

import numpy as np
import pytest
from etils import epath

from dim_jax.errors import InputError
from dim_jax.models.module import parameters
from dim_jax.pipeline import Sampler
from dim_jax.storage import folders
from dim_jax.storage.folders import append, new_folder
from dim_jax.storage.paths import as_path, local_path, upload
from dim_jax.weights.convert import convert, open_weights
from tests.painter_fixtures import QUICKLY, dim, edit, one_error, painter, picture, tiny_checkpoint
from tests.published import dim_folder, files, quiet, sana_pth, sharded
from tests.test_train import log, train

# gcsfs sends whole pieces of up to 5 MB.
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body directly with raw bytes")


def fetched(path: str) -> dict[str, bytes]:
    return files(local_path(as_path(path)))


def same_weights(there: str, here: Path) -> None:
    for (one, ours), (other, theirs) in zip(open_weights(here).stream(), open_weights(there).stream(), strict=True):
        assert one == other
        assert ours.tobytes() == theirs.tobytes()


# Paths


def test_paths_are_of_this_machine_or_of_a_bucket(bucket):
    assert type(as_path("runs/a")) is type(Path("runs/a"))
    assert str(as_path(f"{bucket}/runs//a/")) == f"{bucket}/runs/a"
    assert str(as_path(as_path(f"{bucket}/runs"))) == f"{bucket}/runs"
    for wrong in ("s3://bucket/a", "gs:/bucket/a"):
        with pytest.raises(InputError, match=rf'{wrong}: \w+ is not supported. Give a path of this machine, or .* \("gs://BUCKET'):
            as_path(wrong)


def test_a_bucket_that_is_not_there_is_one_error(bucket, tmp_path):
    message = one_error(dim("convert", "gs://nobody/a", str(tmp_path / "out")))
    assert message.startswith("error: gs://nobody: cannot be reached")
    assert "gcloud auth application-default login" in message
    with pytest.raises(InputError, match=rf"{bucket}/nothing: there is no such file or folder"):
        open_weights(f"{bucket}/nothing")


def test_without_gcsfs_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("dim_jax.errors.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"gs://elsewhere needs the package gcsfs. Install it: pip install 'dim_jax\[gcs\]'"):
        as_path("gs://elsewhere/a")


# Folders


def fill(target: epath.Path, name: str) -> None:
    with new_folder(target, overwrite=True, kind=folders.Kind("test", lambda path: (path / "sub" / "one").exists())) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "one").write_text(name)
        (folder / name).write_text(name)


def test_a_folder_in_a_bucket_appears_whole(bucket):
    target = as_path(f"{bucket}/whole/a")
    fill(target, "1")
    with pytest.raises(FileNotFoundError):
        fill(target, "no/folder")
    assert (target / "sub" / "one").read_text() == "1"
    fill(target, "2")
    assert {path.name for path in target.iterdir()} == {"sub", "2"}
    assert (target / "sub" / "one").read_text() == "2"
    assert [path.name for path in target.parent.iterdir()] == ["a"]
    for overwrite, message in ((False, "exists"), (True, "is not a checkpoint folder, so it is not overwritten")):
        with pytest.raises(InputError, match=f"{target} {message}"), new_folder(target, overwrite=overwrite):
            pass


def test_a_folder_whose_copying_was_cut_off_is_refused_and_can_be_written_again(bucket, tmp_path, goldens, monkeypatch):
    source, target = dim_folder(tmp_path / "dim", goldens), f"{bucket}/cut/dim"

    def cut(source: epath.Path, target: epath.Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(folders, "move", cut)
        with pytest.raises(KeyboardInterrupt):
            convert(source, target, "orbax", console=quiet())
    with pytest.raises(InputError, match=rf"{target}: its copy was interrupted.*The complete folder is (\S+);") as caught:
        open_weights(target)
    complete = str(caught.value).split("The complete folder is ")[1].split(";")[0]
    assert open_weights(complete).config == open_weights(source).config
    convert(source, target, "orbax", overwrite=True, console=quiet())
    assert open_weights(target).config == open_weights(source).config


# Weights


@pytest.mark.parametrize("make", [sharded, sana_pth])
def test_conversions_from_and_to_a_bucket_are_those_on_this_machine(bucket, tmp_path, goldens, make):
    source = make(tmp_path / make.__name__, goldens)
    there = as_path(f"{bucket}/{make.__name__}")
    upload(source.parent if source.is_file() else source, there / "published")
    published = there / "published" / source.name if source.is_file() else there / "published"
    convert(source, tmp_path / "orbax", "orbax", console=quiet())
    convert(published, f"{there}/orbax", "orbax", console=quiet())
    same_weights(f"{there}/orbax", tmp_path / "orbax")
    convert(f"{there}/orbax", f"{there}/back", "dim", console=quiet())
    convert(tmp_path / "orbax", tmp_path / "back", "dim", console=quiet())
    assert fetched(f"{there}/back") == files(tmp_path / "back")
    with pytest.raises(InputError, match="is, or holds, the source"):
        convert(f"{there}/orbax", there, "dim", overwrite=True, console=quiet())


def test_a_painter_is_read_from_a_bucket(bucket, tmp_path):
    upload(tiny_checkpoint(tmp_path / "tiny"), as_path(f"{bucket}/tiny"))
    found, wanted = Sampler.from_pretrained(f"{bucket}/tiny"), painter()
    for ours, theirs in zip(parameters(wanted.dim).values(), parameters(found.dim).values(), strict=True):
        assert np.array_equal(ours, theirs)
    assert found.settings == wanted.settings


def test_pictures_come_from_a_bucket_and_go_there(bucket, loaded, tmp_path):
    picture(64, 48).save(tmp_path / "in.png")
    upload(tmp_path / "in.png", as_path(f"{bucket}/pictures/in.png"))
    there = edit("--sheet", *QUICKLY, image=f"{bucket}/pictures/in.png", output=f"{bucket}/pictures/out.png")
    assert dim(*there) == (0, f"wrote {bucket}/pictures/out.png and {bucket}/pictures/out.sheet.png\n")
    assert dim(*edit(*QUICKLY, image=str(tmp_path / "in.png"), output=str(tmp_path / "out.png")))[0] == 0
    assert fetched(f"{bucket}/pictures")["out.png"] == (tmp_path / "out.png").read_bytes()
    assert f"{bucket}/pictures/out.png exists" in one_error(dim(*there))
    missing = edit(image=f"{bucket}/pictures/none.png", output=f"{bucket}/pictures/other.png")
    assert f"{bucket}/pictures/none.png: there is no such file or folder" in one_error(dim(*missing))


@pytest.mark.parametrize(
    "command",
    [
        ("build-data", "dim-edit", "gs://mine/out", "--source", "pairs:pairs.jsonl"),
        ("train", "--config", "gs://mine/out", "--workdir", "run"),
        ("design", "--image", "gs://mine/out", "--prompt", "x", "--designer", "local"), ("evaluate", "emoji", "--data", "emoji", "-o", "gs://mine/out"),
    ],
    ids=["dim-edit", "train", "design", "evaluate"],
)  # fmt: skip
def test_bucket_paths_are_refused_where_local_is_needed(command, tmp_path, monkeypatch):
    """A folder "gs:" would be no help to anybody."""
    monkeypatch.chdir(tmp_path)
    assert one_error(dim(*command)) == "error: gs://mine/out: a path of this machine is needed here. Copy what lies elsewhere.\n"
    assert list(tmp_path.iterdir()) == []


# Runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory, bucket) -> tuple[Path, epath.Path]:
    """Four steps of the encoder here; and in the bucket, where the last state is as a kill during its save leaves it: they go on from 2."""
    here, there = tmp_path_factory.mktemp("encoder") / "run", as_path(f"{bucket}/encoder/run")
    for workdir in (here, there):
        assert train("nano_encoder", workdir, 4, "--profile", "4:4", train__show_every="4")[0] == 0
    (there / "checkpoints" / "4" / "commit_success.txt").unlink()
    code, text = train("nano_encoder", there, 4, "--profile", "4:4", train__show_every="4")
    assert code == 0, text
    assert "going on after step 2" in text
    return here, there


def test_a_run_in_a_bucket_goes_on_as_one_on_this_machine_does(runs):
    here, there = runs
    assert log(there) == log(here)
    assert {path.name for path in there.iterdir()} == {path.name for path in here.iterdir()}
    assert sorted(path.name for path in (there / "checkpoints").iterdir()) == ["2", "4"]
    for name in ("sheets/000004.md", "model/config.json", "tokenizer/tokenizer.json", "config.json"):
        assert (there / name).read_text() == (here / name).read_text()
    assert any(path.name.startswith("events.out") for path in (there / "tensorboard").iterdir())
    assert (there / "profile" / "plugins").is_dir()
    same_weights(f"{there}/model", here / "model")


def test_a_state_in_a_bucket_becomes_a_checkpoint_there(runs, bucket, tmp_path):
    here, there = runs
    for run, out in ((there, f"{bucket}/two"), (here, f"{tmp_path}/two")):
        code, text = dim("convert", f"{run}/checkpoints/2", out, "--weights", "raw")
        assert code == 0, text
    same_weights(f"{bucket}/two", tmp_path / "two")


def test_a_run_in_a_bucket_with_another_config_is_refused(runs):
    _, there = runs
    code, text = train("nano_encoder", there, 4, optim__learning_rate="0.5")
    assert code == 1
    assert f"error: {there} began with another config: optim.learning_rate" in text


def test_lines_are_added_to_a_file_in_a_bucket(bucket):
    for text in ("one\n", "two\n"):
        append(as_path(f"{bucket}/lines"), text)
    assert as_path(f"{bucket}/lines").read_text() == "one\ntwo\n"
