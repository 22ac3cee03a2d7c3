"""Learning from rewards: what a picture is worth, what the loss does with it, and runs from the command line with both kinds of rewards."""

import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dim_jax.training.reward import optimality, policy_loss, target_rewards
from dim_jax.weights.opening import open_weights
from tests.chat_server import ChatServer, good, status
from tests.lora_fixtures import prepared_pairs
from tests.painter_fixtures import dim, tiny_checkpoint
from tests.sana_fixtures import normal
from tests.started import with_devices
from tests.test_train import arguments, last_error, log

PARTS = ("encoder", "connector", "sana", "autoencoder", "teacher")


def test_what_a_picture_is_worth():
    """1 is the target, 1/2 the source as it is; a place counts by itself, however small, on either side of the edit."""
    source = np.full((1, 8, 8, 3), 100, np.uint8)
    target, spilled, half = source.copy(), source.copy(), source.copy()
    target[:, :2, :2] = 200
    half[:, :2, :2] = 150
    spilled[:, :2, :2], spilled[:, 2:] = 200, 150
    rewards = target_rewards(target, source, np.stack([target, source, half, spilled], 1))
    kept = 64 - 4
    np.testing.assert_allclose(rewards[0], [1, 1 / 2, 1 / (1 + 1 / 4), 1 / (1 + (48 / kept) / 4)], rtol=1e-5)
    same = target_rewards(source, source, np.stack([source, half], 1))  # an edit that changes nothing
    assert same[0, 0] == 1 > same[0, 1]


def test_optimality_is_by_the_group():
    """Whatever scale a group has; without a spread, or a reward, a picture is neither good nor bad."""
    nan = np.nan
    rewards = np.array([[0, 1, 2, 3], [0, 10, 20, 30], [7, 7, 7, 7], [1, 3, nan, nan], [nan] * 4, [0.1, 0.1, 0.1, nan]], np.float32)
    found = np.asarray(optimality(jnp.asarray(rewards), 1.5))
    z = (rewards[0] - 1.5) / (1.5 * rewards[0].std())
    np.testing.assert_allclose(found[0], np.clip(z, -1, 1) / 2 + 0.5, rtol=1e-5)
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)
    np.testing.assert_allclose(found[3], [1 / 2 - 1 / 3, 1 / 2 + 1 / 3, 1 / 2, 1 / 2], rtol=1e-5)
    assert (found[[2, 4, 5]] == 0.5).all()


def test_the_loss_of_both_policies():
    velocity, old, target = (np.asarray(normal(3, 2, 2, 4, seed=seed), np.float64) for seed in range(3))
    sigma, r, beta = np.array([0.2, 0.5, 0.9]), np.array([0.0, 0.3, 1.0]), 0.7
    expected = 0
    for weight, predicted in ((r, (1 - beta) * old + beta * velocity), (1 - r, (1 + beta) * old - beta * velocity)):
        clean = -sigma[:, None, None, None] * (predicted - target)  # how far the predicted picture is off
        squared, size = np.mean(clean**2, (1, 2, 3)), np.mean(np.abs(clean), (1, 2, 3))
        expected = expected + weight * squared / size
    velocity, old, target, sigma, r = (jnp.asarray(x, jnp.float32) for x in (velocity, old, target, sigma, r))
    np.testing.assert_allclose(policy_loss(velocity, old, target, sigma, r, beta), expected, rtol=1e-5)


def test_where_the_loss_leads():
    """From the old policy towards a good picture, away from a bad one, and nowhere if it is neither."""
    old, target, sigma = normal(3, 2, 2, 4), normal(3, 2, 2, 4, seed=1), jnp.full(3, 0.5)
    step = -jax.grad(lambda v: policy_loss(v, old, target, sigma, jnp.array([1.0, 0.0, 0.5]), 1.0).sum())(old)
    towards = (step * (target - old)).sum((1, 2, 3))
    assert towards[0] > 0.1
    assert towards[1] < -0.1
    np.testing.assert_allclose(step[2], 0, atol=1e-6)


# From the command line


def options(place: Path, name: str, steps: int, *more: str, **changed: str) -> list[str]:
    values = {
        "data__source": str(place / "data"), "data__workers": "0", "data__batch_size": "4", "data__shift": "0",
        "model__dtype": "float32", "model__condition_length": "24", "optim__learning_rate": "1e-2", "optim__warmup_steps": "1",
        "reward__pictures": "3", "reward__times": "1", "train__save_every": "1", "train__keep": "9",
        **{f"init__{part}": str(place / "base") for part in PARTS},
    }  # fmt: skip
    return arguments("nano_reward", place / name, steps, *more, **values | changed)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A checkpoint, pairs, and a run of three steps with an anchor."""
    folder = tmp_path_factory.mktemp("reward")
    tiny_checkpoint(folder / "base")
    prepared_pairs(folder)
    code, text = dim(*options(folder, "run", 3, **ANCHORED, train__show_every="3"))
    assert code == 0, text
    return folder


ANCHORED = {"reward__anchor": "0.1", "frozen": "('encoder', 'connector', 'autoencoder', 'teacher')"}


def test_a_run_logs_rewards_and_exports_a_painter(place):
    for line in log(place / "run"):
        assert 0 < line["reward"] < 1
        assert 0 < line["reward_spread"] < 0.5
        assert line["reward_ties"] == 0
    weights, base = open_weights(place / "run/model"), open_weights(place / "base")
    assert weights.config == base.config
    tensors = dict(weights.stream())
    assert {path.split(".")[0] for path, tensor in base.stream() if not np.array_equal(tensor, tensors[path])} == {"sana"}
    settings = json.loads((place / "run/model/settings.json").read_text())
    assert (settings["num_steps"], settings["guidance_scale"]) == (2, 1.0)
    assert "distilled" not in settings
    assert len(list((place / "run/sheets").glob("*.png"))) == 1


def test_a_run_goes_on_upon_a_mesh_with_the_same_curve(place):
    """From its first checkpoint, on four devices."""
    shutil.copytree(place / "run", place / "mesh", ignore=shutil.ignore_patterns("2", "3", "model"))
    command = [sys.executable, "-m", "dim_jax.cli", *options(place, "mesh", 3, **ANCHORED, sharding__data="2", sharding__fsdp="2")]
    run = subprocess.run(command, env=with_devices(4), capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "going on after step 1" in run.stderr
    for line, expected in zip(log(place / "mesh"), log(place / "run"), strict=True):
        # Each device decodes its own rows, so sums are of another order; the spread is a difference of rewards, and as exact as they are.
        spreads = line.pop("reward_spread"), expected.pop("reward_spread")
        assert spreads[0] == pytest.approx(spreads[1], abs=1e-5 * expected["reward"])
        assert line == pytest.approx(expected, rel=1e-4)


def test_a_judge_gives_the_rewards(place):
    """It sees source and picture of each, with the instruction. Errors that pass are tried again, an answer without a score is no reward,
    one that is there is not paid for again, and a server that refuses the key ends the run."""
    numbers = itertools.cycle("3579")
    replies = [status(500), status(429, headers={"Retry-After": "0"}), good("Nice."), good("Nice.")]
    judge = {"lora__rank": "2", "lora__targets": "('sana.blocks.*',)", "reward__method": "judge", "reward__judge": "vllm:m"}
    with ChatServer(*replies, lambda request: good(next(numbers))(request)) as server:
        judge |= {"reward__base_url": server.url, "reward__concurrency": "1"}
        code, text = dim(*options(place, "judged", 2, **judge))
        assert code == 0, text
        asked = server.requests
        assert len(asked) == 2 + 1 + 2 * 4 * 3  # two failures, a second attempt, and three pictures of four edits in two steps
        assert all(len(request.pictures) == 2 and "The instruction was: red\n" in request.text for request in asked)
        assert len({request.pictures[1] for request in asked}) == 24
        assert len({request.pictures[0] for request in asked}) == 4
        first, _ = log(place / "judged")
        scores = np.array([[np.nan, 0.3, 0.5], [0.7, 0.9, 0.3], [0.5, 0.7, 0.9], [0.3, 0.5, 0.7]])
        assert first["reward"] == pytest.approx(np.nanmean(scores))
        assert first["reward_spread"] == pytest.approx(np.nanstd(scores, 1).mean())
        assert len((place / "judged/judge.jsonl").read_text().splitlines()) == 23
        shutil.rmtree(place / "judged/checkpoints/2")
        whole = log(place / "judged")
        code, text = dim(*options(place, "judged", 2, **judge))
        assert code == 0, text
        assert "going on after step 1" in text
        assert log(place / "judged") == whole
        assert len(server.requests) == len(asked)
        server.replies = [status(401, "no such key")]
        assert "rejects the key" in last_error(dim(*options(place, "judged", 3, **judge)))
    assert sorted(path.name for path in (place / "judged/checkpoints").iterdir()) == ["1", "2"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"objective": "autoencoder"}, "only a painter"),
        ({"distill__method": "steps"}, "one of them"),
        ({"trainable": "('sana', 'autoencoder')", "frozen": "('encoder', 'connector')"}, "Freeze the others"),
        ({"data__cache": "cache"}, "which a cache does not hold"),
        ({"data__mix": "{'edit': 0.5, 'caption': 0.5}"}, "has caption: rewards are of edits"),
        ({"flow__condition_dropout": "0.1"}, "config.flow.condition_dropout is 0.1"),
        ({"sample__guidance_scale": "2.0"}, "Set it to 1"),
        ({"reward__pictures": "1"}, "Take at least 2"),
        ({"reward__times": "0"}, "reward.times 0 must be at least 1"),
        ({"reward__beta": "0.0"}, "reward.beta 0.0 must be above 0"),
        ({"reward__method": "like"}, "must be one of none, target, judge"),
        ({"reward__method": "judge"}, "name a judge"),
        ({"reward__method": "judge", "reward__judge": "file:a.jsonl"}, "give a model on a server"),
        ({**ANCHORED, "init__teacher": ""}, "config.init.teacher is empty"),
    ],
)
def test_configs_that_do_not_fit_are_refused(place, changes, says):
    assert says in last_error(dim(*options(place, "refused", 1, **changes)))
