"""A LoRA from the command line: what learns, what is kept, how it goes on, on several devices, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
import pytest

from dim_jax.models.lora import is_factor
from dim_jax.weights.logical_axes import logical_axes
from dim_jax.weights.lora_files import open_lora
from dim_jax.weights.opening import open_weights
from tests.lora_fixtures import changes, prepared_pairs, same
from tests.painter_fixtures import dim, tiny_checkpoint
from tests.started import with_devices
from tests.test_train import arguments, last_error, log

PARTS = ("encoder", "connector", "sana", "autoencoder")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A checkpoint, six pairs of which two are held out, and a run of four steps."""
    folder = tmp_path_factory.mktemp("lora_training")
    tiny_checkpoint(folder / "base")
    prepared_pairs(folder)
    code, text = train(folder, "run", 4)
    assert code == 0, text
    assert "parameters learn" in text
    return folder


def options(place: Path, name: str, steps: int, *more: str, **changed: str) -> list[str]:
    """`dim train` of a LoRA of the checkpoint at `place`/base."""
    values = {
        "data__source": str(place / "data"), "data__batch_size": "4", "model__dtype": "float32", "model__condition_length": "24",
        "lora__rank": "4", "lora__alpha": "8.0", "optim__learning_rate": "1e-2", **{f"init__{part}": str(place / "base") for part in PARTS},
    }  # fmt: skip
    return arguments("lora", place / name, steps, *more, **values | changed)


def train(place: Path, name: str, steps: int, *more: str, **changed: str) -> tuple[int, str]:
    return dim(*options(place, name, steps, *more, **changed))


def test_only_adapters_learn_and_are_kept(place):
    state = jax.tree.leaves_with_path(ocp.metadata(place / "run/checkpoints/4").metadata)
    kept = {tuple(str(getattr(key, "key", getattr(key, "name", key))) for key in keys): leaf for keys, leaf in state}
    named = {key[-1] for key in kept if "." in key[-1]}
    assert named
    assert all(map(is_factor, named))
    assert {path.split(".")[0] for path in named} == {"connector", "sana"}
    assert sum(int(np.prod(leaf.shape)) for leaf in kept.values()) < 4.1 * sum(
        pair.a.size + pair.b.size for pair in open_lora(place / "run/lora").pairs.values()
    )
    assert (place / "run/lora").is_dir()
    assert not (place / "run/model").exists()


def test_what_is_written_is_of_the_run(place):
    """In PEFT's files: rank and alpha of the config; every layer that is named, every block; each has moved from zero."""
    lora = open_lora(place / "run/lora")
    stated = json.loads((place / "run/lora/adapter_config.json").read_text())
    assert (stated["r"], stated["lora_alpha"], stated["rank_pattern"]) == (4, 8, {})
    assert len(lora.pairs) == 2 + 2 * 7
    assert all(pair.rank == 4 and pair.scale == 2 for pair in lora.pairs.values())
    assert all(np.abs(change).max() > 0 for change in changes(lora).values())
    assert log(place / "run")[-1]["loss"] != log(place / "run")[0]["loss"]


def test_a_run_that_is_stopped_goes_on(place):
    assert train(place, "parts", 2)[0] == 0
    code, text = train(place, "parts", 4)
    assert code == 0, text
    assert "going on after step 2" in text
    assert log(place / "parts") == log(place / "run")
    assert same(open_lora(place / "parts/lora"), open_lora(place / "run/lora"))


def test_a_lora_over_int8_weights(place):
    """Losses are near those over the weights as they are, and fall; adapters alone are kept; it goes on where it stopped, and merges."""
    for steps in (2, 40):
        code, text = train(place, "int8", steps, model__quantize="int8")
        assert code == 0, text
    assert "going on after step 2" in text
    losses, expected = ([line["loss"] for line in log(place / name)] for name in ("int8", "run"))
    assert losses[:4] != expected
    np.testing.assert_allclose(losses[:4], expected, rtol=0.005)
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:10])
    kept = [str(keys) for keys, _ in jax.tree.leaves_with_path(ocp.metadata(place / "int8/checkpoints/40").metadata)]
    assert not [name for name in kept if "kernel" in name]
    code, text = dim("convert", str(place / "base"), str(place / "merged"), "--to", "dim", "--lora", str(place / "int8/lora"))
    assert code == 0, text


def test_any_state_as_a_lora(place, tmp_path):
    for which in ("ema", "raw"):
        code, text = dim("convert", str(place / "run/checkpoints/4"), str(tmp_path / which), "--to", "dim", "--weights", which)
        assert code == 0, text
    assert same(open_lora(tmp_path / "ema"), open_lora(place / "run/lora"))
    assert not same(open_lora(tmp_path / "raw"), open_lora(place / "run/lora"))


def test_another_rank_is_another_run(place):
    assert "lora.rank was 4, is 2" in last_error(train(place, "run", 6, lora__rank="2"))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"model__quantize": "int2"}, "quantize is 'int2', but must be one of none, int8, int4"),
        ({"model__quantize": "int8", "lora__rank": "0"}, "quantized weights cannot learn. Train a LoRA (lora.rank)"),
        ({"lora__rank": "-1"}, "rank -1 must be at least 1"),
        ({"lora__alpha": "0.0"}, "alpha 0.0 positive"),
        ({"lora__targets": "('sana.blocks.attn.kqv',)"}, "sana.blocks.attn.kqv fits no layer. There are connector.fc1, "),
        ({"lora__targets": "()"}, "nothing fits no layer"),
        ({"trainable": "('sana',)", "frozen": "('connector','encoder','autoencoder')"}, "connector.* fits no layer. There are sana.x_emb"),
        ({"trainable": "('sana','connector','encoder')", "frozen": "('autoencoder',)"}, "of connector and sana, not of encoder. Freeze"),
        ({"init__sana": ""}, "config.init: sana: a LoRA is of a checkpoint"),
        ({"init__sana": "nowhere"}, "nowhere: there is no such file"),
        ({"model__condition_length": "64"}, "base would grow to model.edit=True and model.condition_length=64, and a LoRA is"),
    ],
)  # fmt: skip
def test_a_config_that_does_not_hold_together(place, changed, says):
    assert says in last_error(train(place, "refused", 1, **changed))
    assert not (place / "refused/checkpoints").exists()


def test_factors_are_cut_as_their_kernel_is():
    assert logical_axes("sana.blocks.attn.qkv.lora_a") == ("layers", "width", "small")
    assert logical_axes("sana.blocks.attn.qkv.lora_b") == ("layers", "small", "linear_heads")
    assert logical_axes("connector.fc1.lora_b") == ("small", "mlp")


def test_the_curve_is_the_same_on_a_mesh(place):
    command = [sys.executable, "-m", "dim_jax.cli", *options(place, "mesh", 4, sharding__fsdp="2", sharding__tensor="2")]
    run = subprocess.run(command, env=with_devices(4), capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    for line, expected in zip(log(place / "mesh"), log(place / "run"), strict=True):
        np.testing.assert_allclose(line["loss"], expected["loss"], rtol=1e-5)
    found, expected = (open_lora(place / name / "lora").pairs for name in ("mesh", "run"))
    assert found.keys() == expected.keys()


def test_the_checkpoint_is_as_before(place):
    assert open_weights(place / "base").nbytes == open_weights(tiny_checkpoint(place / "again")).nbytes
    for file in (place / "again").iterdir():
        assert file.read_bytes() == (place / "base" / file.name).read_bytes()
