"""LPIPS by a random AlexNet, against torchmetrics' own network around the same one."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import lpips as theirs

from dim_jax.errors import InputError
from dim_jax.evals.benchmark import Benchmark, Case
from dim_jax.evals.lpips import Lpips
from dim_jax.evals.measuring import Models, measure
from tests.benchmark_fixtures import put, put_lines


def alexnet() -> torch.nn.Sequential:
    """`features` of torchvision's AlexNet."""
    nn = torch.nn
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(), nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(), nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(), nn.MaxPool2d(3, 2),
    )  # fmt: skip


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> tuple[Path, torch.nn.Sequential]:
    torch.manual_seed(0)
    file, features = tmp_path_factory.mktemp("alexnet") / "alexnet.pth", alexnet()
    torch.save({f"features.{name}": value for name, value in features.state_dict().items()} | {"classifier.1.bias": torch.zeros(2)}, file)
    return file, features


@pytest.mark.parametrize("size", [(64, 48), (31, 31), (100, 33)])
def test_distances_are_those_of_torchmetrics(network, monkeypatch, size):
    file, features = network
    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda net, pretrained: features)
    model = theirs._LPIPS(net="alex")
    rng, ours = np.random.default_rng(1), Lpips(file)
    a = rng.random((*size, 3))
    for b in (rng.random((*size, 3)), 0.9 * a, np.zeros_like(a)):
        tensors = [torch.from_numpy(x.astype(np.float32)).permute(2, 0, 1)[None] for x in (a, b)]
        expected = float(model(*tensors, normalize=True))
        assert expected > 0
        assert ours.distance(a, b) == pytest.approx(expected, rel=1e-5)  # sums of thousands of float32 products
    assert ours.distance(a, a) == 0


def test_it_is_measured_where_the_network_is_named(network, tmp_path):
    rows = []
    for seed, name in enumerate(("source", "target")):
        put(tmp_path / f"{name}.png", seed)
    put(tmp_path / "out/pictures/x/a.png", 5)
    rows.append({"id": "a", "category": "x", "prompt": "p", "pictures": ["pictures/x/a.png"]})
    put_lines(tmp_path / "out/cases.jsonl", rows)
    cases = [Case("a", "x", "p", tmp_path / "source.png", tmp_path / "target.png")]
    one = Benchmark("mine", "Mine", "edit", lambda data: cases, lambda case, k: case.id, metrics=("l1", "lpips"))
    assert measure(tmp_path / "out", one, cases, Models())["left_out"] == {"lpips": "needs a network (--lpips)"}
    found = measure(tmp_path / "out", one, cases, Models(lpips=network[0]))
    assert 0 < found["mean"]["lpips"] < 1
    assert found["left_out"] == {}


def test_other_files_are_refused(network, tmp_path):
    for name, content, says in (
        ("text.pth", b"no network", "cannot be read as weights"), ("empty.pth", b"", "cannot be read as weights"),
        ("none.pth", None, "No such file"), ("other.pth", {"fc.weight": torch.zeros(2)}, "has no features.0.weight"),
        ("small.pth", {f"features.{n}.{part}": torch.zeros(4) for n in (0, 3, 6, 8, 10) for part in ("weight", "bias")}, "(4, 4, 4, 4, 4)"),
    ):  # fmt: skip
        if isinstance(content, bytes):
            (tmp_path / name).write_bytes(content)
        elif content is not None:
            torch.save(content, tmp_path / name)
        with pytest.raises(InputError, match=rf"{name}: .*{re.escape(says)}"):
            Lpips(tmp_path / name)
    with pytest.raises(InputError, match="needs 31 pixels a side, and here are 30 x 64"):
        Lpips(network[0]).distance(np.zeros((30, 64, 3)), np.zeros((30, 64, 3)))
