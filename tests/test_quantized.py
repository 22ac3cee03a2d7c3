"""Weights of 8 and 4 bits, and weights in the host's memory: what is quantized, how near pictures are, what is refused."""

import weakref
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix
from flax import nnx

from dim_jax import memory
from dim_jax.batching import Source
from dim_jax.errors import InputError
from dim_jax.models.dim import Dim, DimConfig
from dim_jax.models.lora import with_lora
from dim_jax.models.module import parameters, with_parameters
from dim_jax.models.quantized import PREFIXES, Quantize, abstract_like, dense, num_bytes, quantize, quantize_on_host, with_quantized
from dim_jax.pipeline import EditPipeline
from dim_jax.processing.pictures import open_picture
from dim_jax.sampling import Sampler
from dim_jax.weights.published import Weights
from tests.lora_fixtures import base_and_lora
from tests.painter_fixtures import QUICK, dim, edit, largest_difference, one_error, painter, picture, quick_nano

GIB = 2**30


@pytest.mark.parametrize(("qtype", "groups", "least", "most"), [("int8", 1, 0.003, 0.012), ("int4", 2, 0.05, 0.15)])
def test_error_of_a_kernel_is_that_of_the_format(qtype: Quantize, groups, least, most):
    kernel = np.random.default_rng(0).normal(size=(3, 96, 40)).astype(np.float32)
    kernel[:, :, 7] *= 1000  # an output channel of its own scale
    made = quantize_on_host(kernel, quantize(jnp.asarray(kernel), qtype, jnp.float32))
    assert made.qvalue.dtype == jnp.dtype(qtype)
    assert made.scale.shape == (3, groups, 40)
    assert num_bytes(made) == kernel.size // (2 if qtype == "int4" else 1) + 4 * made.scale.size
    error = np.asarray(dense(made, jnp.float32)) - kernel
    for channel in (7, 8):
        assert least < np.sqrt((error[..., channel] ** 2).mean() / (kernel[..., channel] ** 2).mean()) < most


def test_the_large_layers_are_quantized_and_nothing_else():
    model = nnx.eval_shape(lambda: Dim(DimConfig.dim_4_6b(edit=True), dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    params = parameters(with_quantized(model, "int4"))
    quantized = {path for path, leaf in params.items() if isinstance(leaf, qwix.QArray)}
    layers = {path for path in params if path.startswith(PREFIXES) and path.endswith(".kernel")}
    assert quantized == layers - {"sana.blocks.mlp.depth_conv.kernel"}
    assert len(quantized) == 7 + 5 + 7
    assert {params[path].shape for path in quantized} == {parameters(model)[path].shape for path in quantized}
    assert params["sana.blocks.attn.qkv.kernel"].scale.shape == (20, 35, 6720)
    for found, gib in ((model, 10.62), (with_quantized(model, "int8"), 6.00), (with_quantized(model, "int4"), 3.83)):
        leaves = abstract_like(parameters(found), jnp.bfloat16).values()
        assert sum(map(num_bytes, leaves)) / GIB == pytest.approx(gib, abs=0.01)


def test_pictures_of_the_bundled_model(tmp_path):
    """In float32, two edits beside those of the weights as they are; the host's memory changes nothing."""
    folder = quick_nano(tmp_path / "nano", 5)
    pictures = [open_picture(folder / "samples" / f"{name}.png") for name in ("moon", "book")]

    def paint(**options: Any) -> list[np.ndarray]:
        results = EditPipeline.from_pretrained(folder, **options)(["Show a full moon.", "Make the book red."], pictures, seeds=[0, 0])
        assert results[0].dtype == ", ".join(["float32", *(f"{q} weights" for q in [options.get("quantize")] if q)])
        return [np.asarray(result.image, float) for result in results]

    whole, eight, four = paint(), paint(quantize="int8", offload=True), paint(quantize="int4")
    psnr = [
        [10 * np.log10(255**2 / ((ours - theirs) ** 2).mean()) for ours, theirs in zip(whole, near, strict=True)] for near in (eight, four)
    ]
    assert min(psnr[0]) > 44
    assert min(psnr[1]) > 18
    assert max(psnr[1]) < min(psnr[0])


def test_the_host_holds_what_the_device_does_not(tmp_path):
    """Pictures are the same, also step by step, and with a LoRA; parameters stay where they are."""
    base, lora = base_and_lora(tmp_path)
    offloaded, requests = Sampler.from_pretrained(base, offload=True), [EditPipeline(painter()).request("red", _source(), 3, QUICK)]
    assert all(isinstance(leaf, np.ndarray) for leaf in parameters(offloaded.dim).values())
    ((_, expected),) = painter().paint(requests, QUICK)
    ((_, found),) = offloaded.paint(requests, QUICK)
    steps: list[int] = []
    ((_, watched),) = offloaded.paint(requests, QUICK, on_step=lambda step, latents: steps.append(step))
    assert largest_difference(expected.picture, found.picture) == 0
    assert largest_difference(expected.picture, watched.picture) <= 1
    assert steps == [1, 2, 3]
    adapted = Sampler.from_pretrained(base, quantize="int4", offload=True, loras=[str(lora)])
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(parameters(adapted.dim)))


def _source() -> Source:
    return Source(picture(64, 64))


def test_an_adapter_beside_a_quantized_kernel():
    kernel, x = np.random.default_rng(0).normal(size=(64, 40)).astype(np.float32), jnp.ones((2, 64))
    layers = nnx.Dict(sana=nnx.Dict(blocks=nnx.Dict(fc=nnx.Linear(64, 40, rngs=nnx.Rngs(0)))))
    model = with_lora(with_quantized(nnx.eval_shape(lambda: layers), "int8"), {"sana.blocks.fc": 2}, 0.5)
    small = quantize_on_host(kernel, parameters(model)["sana.blocks.fc.kernel"])
    tensors = {"kernel": small, "bias": jnp.full(40, 3.0), "lora_a": jnp.ones((64, 2)), "lora_b": jnp.full((2, 40), 0.25)}
    adapted = with_parameters(model, {f"sana.blocks.fc.{name}": tensor for name, tensor in tensors.items()})
    np.testing.assert_allclose(adapted.sana.blocks.fc(x), x @ dense(small, jnp.float32) + 3 + 16, rtol=1e-5)


def test_kernels_are_quantized_as_they_are_read(tmp_path, monkeypatch):
    """Of the tensors that were read, only the last ones are left when the next one comes."""
    base, _ = base_and_lora(tmp_path)
    stream, alive = Weights.stream, list[int]()

    def watched(weights: Weights, only: Any) -> Any:
        read: list[weakref.ref] = []
        for path, tensor in stream(weights, only):
            copy = np.array(tensor)
            read.append(weakref.ref(copy))
            yield path, copy
            del copy
            alive.append(sum(kernel() is not None for kernel in read[:-1]))

    monkeypatch.setattr(Weights, "stream", watched)
    Sampler.from_pretrained(base, quantize="int8", offload=True)
    assert len(alive) > 100
    assert max(alive) <= 1  # of the CPU's asynchronous transfer


def test_parameters_that_cannot_fit_are_refused_before_they_are_read(tmp_path, monkeypatch):
    base, _ = base_and_lora(tmp_path)
    monkeypatch.setattr(Weights, "stream", lambda *_: pytest.fail("it was read"))
    device = SimpleNamespace(memory_stats=lambda: {"bytes_limit": 2**20})
    monkeypatch.setattr(memory, "jax", SimpleNamespace(config=SimpleNamespace(jax_default_device=device), errors=jax.errors))
    with pytest.raises(
        InputError, match=r"its parameters take 0\.0 GiB \(autoencoder 0\.0, .* Take --offload \(one part at a time\), --quantize int8"
    ):
        Sampler.from_pretrained(base)
    with pytest.raises(InputError, match=r"Take --quantize int4, or int8, --dtype bfloat16, or raise XLA_PYTHON"):
        Sampler.from_pretrained(base, offload=True)


def test_options_that_do_not_go_together(tmp_path):
    base, _ = base_and_lora(tmp_path)
    picture(64, 64).save(tmp_path / "in.png")
    text = one_error(dim(*edit("--offload", "--devices", "1", checkpoint=str(base), image=str(tmp_path / "in.png"))))
    assert "Offloading is for one device. Leave --offload out, or --devices." in text
    code, text = dim(*edit("--quantize", "int2"))
    assert code == 2
    assert "'int2' is not one of 'int8', 'int4'" in text
