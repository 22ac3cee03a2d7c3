"""The Frechet distance against torchmetrics, SciPy and what is known of Gaussians; how pictures are resized for the network."""

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image
from torchmetrics.image.fid import FrechetInceptionDistance

from dim_jax.errors import InputError
from dim_jax.evals.frechet import Statistics, collect_statistics, frechet_distance, open_features, resize_bicubic
from tests.painter_fixtures import picture

RNG = np.random.default_rng(0)
MIX = RNG.normal(size=(6, 6))
A, B = RNG.normal(size=(500, 6)) @ MIX + 3, RNG.normal(size=(300, 6)) * (0.5, 1, 2, 1, 1, 1) - 1


def statistics(*batches: np.ndarray) -> Statistics:
    found = Statistics()
    for batch in batches:
        found.add(batch)
    return found


class Means(torch.nn.Module):
    """Twelve means of each channel's quarters, in place of Inception."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(pixels.to(torch.float64), 2).flatten(1)


def test_statistics_are_numpys_in_whatever_batches():
    found = statistics(A[:7], A[7:100], A[100:])
    np.testing.assert_allclose(found.mean(), A.mean(0), rtol=1e-13)
    np.testing.assert_allclose(found.covariance(), np.cov(A, rowvar=False), rtol=1e-12, atol=1e-12)
    far = statistics((A + 1e6)[:50], (A + 1e6)[50:])
    np.testing.assert_allclose(far.covariance(), np.cov(A, rowvar=False), rtol=1e-7, atol=1e-7)


def test_the_distance_is_that_of_clean_fid():
    """Its formula, as published with the FID: |m - n|^2 + tr(C + D - 2 sqrtm(C D))."""
    first, second = np.cov(A, rowvar=False), np.cov(B, rowvar=False)
    difference = A.mean(0) - B.mean(0)
    theirs = difference @ difference + np.trace(first + second - 2 * scipy.linalg.sqrtm(first @ second).real)
    assert frechet_distance(statistics(A), statistics(B)) == pytest.approx(theirs, rel=1e-9)


def test_the_distance_is_that_of_torchmetrics():
    pictures = [picture(32, 24, seed) for seed in range(40)]
    real, fake = pictures[:25], pictures[15:]
    theirs = FrechetInceptionDistance(feature=Means(), input_img_size=(3, 24, 32)).set_dtype(torch.float64)
    for group, is_real in ((real, True), (fake, False)):
        theirs.update(torch.from_numpy(np.stack([np.asarray(one) for one in group])).permute(0, 3, 1, 2), real=is_real)

    def features(batch: list[Image.Image]) -> np.ndarray:
        return Means()(torch.from_numpy(np.stack([np.asarray(one) for one in batch])).permute(0, 3, 1, 2)).numpy()

    ours = frechet_distance(collect_statistics(real, features), collect_statistics(fake, features))
    assert ours == pytest.approx(float(theirs.compute()), abs=1e-3)
    assert ours > 1


def test_known_distances():
    assert frechet_distance(statistics(A), statistics(A)) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(statistics(A), statistics(A + 2)) == pytest.approx(6 * 4)
    # Of commuting covariances C and 4 C the roots subtract: tr(C + 4 C - 2 * 2 C) = tr(C).
    assert frechet_distance(statistics(A), statistics(2 * A - A.mean(0))) == pytest.approx(np.trace(np.cov(A, rowvar=False)))
    singular = np.repeat(RNG.normal(size=(20, 1)), 6, 1)  # of rank 1
    assert frechet_distance(statistics(singular), statistics(singular)) == pytest.approx(0, abs=1e-6)
    with pytest.raises(InputError, match="two pictures on either side at least; here are 1"):
        frechet_distance(statistics(A), statistics(B[:1]))


def test_pictures_are_resized_without_aliasing_and_without_rounding():
    """Stripes of one pixel become their mean; a filter that skips pixels would show black or white ones."""
    stripes = np.zeros((897, 897, 3), np.uint8)
    stripes[:, ::2] = 255
    inner = resize_bicubic(Image.fromarray(stripes))[4:-4, 4:-4]
    assert inner.shape == (291, 291, 3)
    np.testing.assert_allclose(inner, 127.5, atol=20)
    pixels = resize_bicubic(picture(40, 30, 1))
    assert pixels.dtype == np.float32
    assert np.abs(pixels - pixels.round()).max() > 0.4, "no rounding to 8 bits"
    channel = Image.fromarray(np.asarray(picture(40, 30, 1))[..., 1].astype(np.float32)).resize((299, 299), Image.Resampling.BICUBIC)
    np.testing.assert_allclose(pixels[..., 1], np.asarray(channel).clip(0, 255), atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")  # what is published is TorchScript
def test_a_feature_network_by_path(tmp_path):
    class Some(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels[:, :, 50::100, 50::100]

    class Wrapped(torch.nn.Module):
        """As NVIDIA's Inception: `layers` reads what is in [-1, 1], its own call resizes."""

        def __init__(self):
            super().__init__()
            self.layers = Some()

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels * 0

    for name, network, scale in (("plain.pt", Some(), lambda x: x), ("inception.pt", Wrapped(), lambda x: (x - 128) / 128)):
        torch.jit.save(torch.jit.script(network), tmp_path / name)
        features, resizing = open_features(tmp_path / name)
        one = picture(64, 48, 3)
        np.testing.assert_array_equal(features([one, one])[1], scale(resize_bicubic(one)[50::100, 50::100]).transpose(2, 0, 1).ravel())
        assert "299 x 299" in resizing
    (tmp_path / "wrong.pt").write_bytes(b"no network")
    for path, says in (
        (tmp_path / "wrong.pt", "is not a TorchScript file"),
        (Path("nothing.pt"), "no such file"),
        (tmp_path, "no AutoModel can be read"),
    ):
        with pytest.raises(InputError, match=says):
            open_features(path)
