"""The paper's three stages from raw files and published parents to one checkpoint, with tiny sizes; what learns and what does not."""

import json
import shutil
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.tree_util import DictKey

from dim_jax.config import read_config
from dim_jax.edit_result import EditResult
from dim_jax.errors import InputError
from dim_jax.models.dc_ae_config import DCAEConfig
from dim_jax.models.module import parameters
from dim_jax.models.qwen import QwenConfig
from dim_jax.models.sana_config import SanaConfig
from dim_jax.pipeline import EditPipeline
from dim_jax.processing.processor import Processor
from dim_jax.sharding import Sharding
from dim_jax.training.config_guard import check_config
from dim_jax.training.objectives import make_objective
from dim_jax.training.state import abstract_frozen, abstract_state
from dim_jax.weights.convert import open_weights
from dim_jax.weights.model_config import ModelConfig
from tests.hub_server import HubServer, use
from tests.layout_fixtures import ROWS, dim_edit, extract, files, image, png, prepared, ultra_edit
from tests.painter_fixtures import dim, one_error, picture, tiny_checkpoint
from tests.test_train import CONFIGS, log

STAGES = {"t2i": (653_125, 2e-5, 256), "edit_stage1": (1_250_000, 1e-4, 32), "edit_stage2": (364_062, 1e-5, 32)}
PARTS = ("encoder", "connector", "sana", "autoencoder")
SMALL = {
    "data.batch_size": 2, "data.resolution": 64, "data.lengths": "(320,)", "data.workers": 0, "model.condition_length": 320,
    "model.dtype": "float32", "optim.warmup_steps": 1, "train.log_every": 1, "train.save_every": 2, "train.keep_every": 0,
    "sample.num_steps": 1, "sharding.fsdp": 1,
}  # fmt: skip


@pytest.mark.parametrize("name", STAGES)
def test_the_numbers_of_the_paper(name):
    config = read_config(CONFIGS / f"{name}.py", {})
    assert (config.train.steps, config.optim.learning_rate, config.data.batch_size) == STAGES[name]
    assert check_config(config) == PARTS
    assert config.train.keep_every % config.train.save_every == 0
    picture = (config.data.resolution // 28) ** 2  # tokens of a source
    assert (config.data.lengths[0] > picture) == (name != "t2i")


@pytest.mark.parametrize("name", STAGES)
def test_every_parameter_is_trainable_or_frozen(name):
    """Frozen ones are in no part of the state, so nothing of the optimizer is of them and no gradient is asked for."""
    config = read_config(CONFIGS / f"{name}.py", {"sharding.fsdp": "1"})
    sizes = ModelConfig(QwenConfig.tiny(), SanaConfig.tiny(edit=config.model.edit), DCAEConfig.tiny())
    layout = QwenConfig.tiny().vision.layout
    processor = Processor.from_pretrained(CONFIGS.parent / "tests/tiny_tokenizer", resolution=64, condition_length=256, layout=layout)
    objective, sharding = make_objective(config, sizes, processor), Sharding.open(config, sizes, jax.devices()[:1])
    state, (frozen, cached) = abstract_state(config, sizes, sharding), abstract_frozen(objective, sharding)
    learns, rests = set(state.params), set(frozen)
    assert (learns | rests, learns & rests, cached) == (set(parameters(objective.model)), set(), {})
    assert {path.split(".")[0] for path in learns} == {"connector", "sana"}
    assert {path.split(".")[0] for path in rests} == {"encoder", "autoencoder"}
    keys = [entry.key for path, _ in jax.tree.leaves_with_path(state) for entry in path if isinstance(entry, DictKey)]
    assert Counter(keys) == dict.fromkeys(learns, 4)  # itself, its average, two moments


@pytest.mark.parametrize("frozen", [("encoder",), ("encoder", "autoencoder", "sana")])
def test_component_must_be_declared_once(frozen):
    config = read_config(CONFIGS / "edit_stage2.py", {})
    config.frozen = frozen
    with pytest.raises(InputError, match=r"config\.frozen .*: name each of encoder, connector, sana, autoencoder once"):
        check_config(config)


def parents(folder: Path) -> dict[str, str]:
    """The three that text to image starts from, each in its own published format."""
    whole = tiny_checkpoint(folder / "whole")
    for to in ("qwen", "diffusers"):
        code, text = dim("convert", str(whole), str(folder / to), "--to", to)
        assert code == 0, text
    goldens = Path(__file__).parent / "goldens"
    (folder / "sana").mkdir()
    shutil.copy(goldens / "sana_t2i.weights.safetensors", folder / "sana/model.safetensors")
    shutil.copy(goldens / "sana_t2i.json", folder / "sana")
    return {"encoder": str(folder / "qwen"), "sana": str(folder / "sana"), "autoencoder": str(folder / "diffusers/vae")}


def captioned(folder: Path, name: str) -> Path:
    """A set of captioned pictures, as DIM-T2I has them."""
    folder.mkdir()
    extract(folder, {f"image/{row}.png": png(image(row)) for row in range(ROWS)})
    rows = [{"image_path": f"image/{row}.png", "prompt": f"Picture {row} of {name}."} for row in range(ROWS)]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_all_training_stages_end_to_end(tmp_path, monkeypatch):
    raw = {"t2i": captioned(tmp_path / "T2I", "blip3"), "mix": captioned(tmp_path / "mix", "own")}
    raw |= {"edit_stage1": ultra_edit(tmp_path / "UltraEdit"), "edit_stage2": dim_edit(tmp_path / "DIM-Edit")}
    extract(raw["edit_stage2"], files("image/{}.png"))
    raw = {name: prepared(folder) for name, folder in raw.items()}
    init, before = parents(tmp_path), dict[str, np.ndarray]()
    for name in STAGES:
        changes = SMALL | {"data.source": raw[name]} | {f"init.{part}": path for part, path in init.items()}
        options = [option for key, value in changes.items() for option in ("--set", f"{key}={value}")]
        if name == "t2i":
            config = tmp_path / "configs/t2i.py"
            config.parent.mkdir()
            shutil.copy(CONFIGS / "common.py", config.parent)
            config.write_text((CONFIGS / "t2i.py").read_text().replace("data/prepared/T2I-mix", str(raw["mix"])))
        else:
            config = CONFIGS / f"{name}.py"
        code, text = dim("train", "--config", str(config), "--workdir", str(tmp_path / name), "--steps", "3", *options)
        assert code == 0, text
        assert all(np.isfinite(line["loss"]) for line in log(tmp_path / name))
        after = dict(open_weights(tmp_path / name / "model").stream())
        for path, tensor in before.items():
            changed = after[path].shape != tensor.shape or not np.array_equal(after[path], tensor)
            assert changed or not path.startswith("connector."), path
            assert not changed or path.startswith(("connector.", "sana.")), path
        before, init = after, dict.fromkeys(PARTS, str(tmp_path / name / "model"))
    sana = open_weights(tmp_path / "edit_stage2/model").config.sana
    assert (sana.is_edit, sana.condition_length) == (True, 320)
    painted = EditPipeline.from_pretrained(tmp_path / "edit_stage2/model")(["Make it red."], [picture(64, 64)])[0]
    assert painted.image.size == (64, 64)
    _pushed_with_its_run(tmp_path / "edit_stage2", tmp_path / "cache", painted, monkeypatch)


def _pushed_with_its_run(run: Path, cache: Path, painted: EditResult, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the hub, the model with a card of this run; from there it paints the same."""
    with HubServer() as server:
        use(server, cache, monkeypatch)
        code, text = dim("push", str(run / "model"), "me/dim")
        assert code == 0, text
        files = server.repositories["me/dim"].files()
        again = EditPipeline.from_pretrained("me/dim@main")(["Make it red."], [picture(64, 64)])[0]
    assert np.array_equal(again.image, painted.image)
    text, losses = files["README.md"].decode(), log(run)
    assert "| data.text | blueprint |" in text
    assert "Held-out examples after step 3:" in text
    assert f"| 3 | {losses[-1]['loss']:.4g} |" in text
    assert files["card/training.png"] == (run / "sheets/000003.png").read_bytes()
    assert json.loads(files["card/training.json"])["train.steps"] == 3


def test_parents_that_are_not_there_are_named(tmp_path):
    changes = ("--set", "data.source=x", "--steps", "1")
    message = one_error(dim("train", "--config", str(CONFIGS / "t2i.py"), "--workdir", str(tmp_path / "run"), *changes))
    assert "weights/Qwen2.5-VL-3B-Instruct" in message
