"""`dim convert --mean-with`: the mean of two models, refused where they are not alike."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from dim_jax.errors import InputError
from tests.painter_fixtures import dim, one_error
from tests.published import dim_folder, qwen_folder, run, sana_pth, tensors_of


@pytest.fixture
def two(tmp_path, goldens) -> tuple[Path, Path]:
    """The tiny model, and one whose every tensor is twice that and one more."""
    tensors = {name: (2 * tensor + 1).astype(tensor.dtype) for name, tensor in tensors_of(goldens).items()}
    return dim_folder(tmp_path / "one", goldens), dim_folder(tmp_path / "other", goldens, tensors)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_mean_of_every_tensor(two, tmp_path, goldens, dtype):
    one, other = two
    arguments = ("convert", str(one), str(tmp_path / "mean"), "--to", "dim", "--mean-with", str(other), "--dtype", dtype)
    assert dim(*arguments)[0] == 0
    found = load_file(tmp_path / "mean/model.safetensors")
    assert found.keys() == load_file(one / "model.safetensors").keys()
    unused = "decoder.model.pos_embed"  # which no network reads: it stays as it is
    assert not found[unused].any()
    for name, tensor in tensors_of(goldens).items():
        if name == unused:
            continue
        wanted = (3 * tensor.astype(np.float32) + 1) / 2
        assert found[name].dtype == (np.float32 if dtype == "float32" else ml_dtypes.bfloat16)
        np.testing.assert_allclose(found[name].astype(np.float32), wanted, rtol=1e-6 if dtype == "float32" else 2**-8, atol=1e-6)


def test_mismatched_models_are_refused(two, tmp_path, goldens):
    one, _ = two
    with pytest.raises(InputError, match=r"qwen: autoencoder\.\S+ is None, in .*one \(.*\)\. Give a checkpoint with the same parameters"):
        run(one, tmp_path / "mean", "dim", mean_with=qwen_folder(tmp_path / "qwen", goldens))
    with pytest.raises(InputError, match=r"one: \S+ is \(.*\), in .* None\. Give a checkpoint with the same parameters"):
        run(sana_pth(tmp_path / "sana", goldens), tmp_path / "mean", "dim", mean_with=one)
    assert not (tmp_path / "mean").exists()


def test_wrong_usage(two, tmp_path):
    one, other = map(str, two)
    assert "no such file or folder" in one_error(dim("convert", one, str(tmp_path / "mean"), "--mean-with", str(tmp_path / "none")))
    parents = ("--encoder", one, "--sana", one, "--autoencoder", one)
    assert dim("convert", str(tmp_path / "mean"), *parents, "--mean-with", other)[0] == 2
