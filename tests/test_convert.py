"""Conversion to the bit, there and back, in every format; the libraries load our exports."""

import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaTransformer2DModel
from safetensors.numpy import load_file, save_file
from transformers import Qwen2_5_VLForConditionalGeneration

from dim_jax import checkpoint
from dim_jax.diffusion.sampler import sigmas
from dim_jax.diffusion.solvers import SOLVERS
from dim_jax.errors import InputError
from dim_jax.weights.convert import assemble, convert, open_weights
from tests.published import dim_folder, files, quiet, qwen_folder, run, sana_pth, sharded, tensors_of

DTYPES = {
    "fp32": (np.float32,),
    "bf16": (ml_dtypes.bfloat16,),
    "fp16": (np.float16,),
    "mixed": (np.float32, ml_dtypes.bfloat16, np.float16),
}


@pytest.fixture(scope="module")
def orbax(tmp_path_factory) -> Path:
    """The goldens' whole tiny model as a checkpoint folder."""
    folder, goldens = tmp_path_factory.mktemp("orbax"), Path(__file__).parent / "goldens"
    convert(dim_folder(folder / "dim", goldens), folder / "orbax", "orbax", console=quiet())
    return folder / "orbax"


@pytest.fixture(scope="module")
def diffusers(orbax) -> Path:
    convert(orbax, orbax.parent / "diffusers", "diffusers", console=quiet())
    return orbax.parent / "diffusers"


# There and back


@pytest.mark.parametrize("make", [dim_folder, sharded])
def test_published_folder_roundtrip(tmp_path, goldens, make):
    source = make(tmp_path / "dim", goldens)
    printed = run(source, tmp_path / "orbax", "orbax")
    run(tmp_path / "orbax", tmp_path / "back", "dim")
    assert files(tmp_path / "back") == files(source)
    assert "decoder.model.pos_embed" in printed
    assert "724,544" in printed


@pytest.mark.parametrize("index", ["model.safetensors.index.json", "model.safetensors.index.fp16.json"])
def test_shards_in_folders_come_back_as_they_were(tmp_path, goldens, index):
    source = dim_folder(tmp_path / "dim", goldens)
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    names = dict(zip(sorted(tensors), ["a/1.safetensors", "a/b/2.safetensors", "3.safetensors"] * len(tensors), strict=False))
    for shard in set(names.values()):
        (source / shard).parent.mkdir(parents=True, exist_ok=True)
        save_file({name: tensors[name] for name in names if names[name] == shard}, source / shard, {"format": "pt"})
    (source / index).write_bytes(b"\xef\xbb\xbf" + json.dumps({"weight_map": names}, indent=1).replace("\n", "\r\n").encode())
    run(source, tmp_path / "ours", "orbax")
    run(tmp_path / "ours", tmp_path / "back", "dim")
    back = files(tmp_path / "back")
    assert back.pop("model.safetensors.index.json") == names
    (source / index).unlink()
    assert back == files(source)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_roundtrips(tmp_path, goldens, dtype):
    """Also where layers that we stack, or parts that we join, have different ones."""
    kinds = DTYPES[dtype]
    tensors = {name: tensor.astype(kinds[i % len(kinds)]) for i, (name, tensor) in enumerate(tensors_of(goldens).items())}
    source = dim_folder(tmp_path / "dim", goldens, tensors)
    run(source, tmp_path / "orbax", "orbax")
    run(tmp_path / "orbax", tmp_path / "back", "dim")
    assert files(tmp_path / "back") == files(source)


def test_a_checkpoint_folder_holds_what_the_published_one_does(orbax, goldens):
    weights = open_weights(orbax.parent / "dim")
    stored = dict(checkpoint.read(orbax))
    ours = dict(weights.stream())
    assert list(ours) == weights.parameters
    assert ours.keys() == stored.keys()
    assert all(ours[path].tobytes() == stored[path].tobytes() for path in ours)
    assert open_weights(orbax).config == weights.config
    assert sorted(path.name for path in orbax.iterdir()) == ["config.json", "extras.safetensors", "manifest.json", "weights"]


def test_diffusers_and_back_is_the_published_file(diffusers, orbax, tmp_path):
    """Through diffusers' naming, with what it cannot hold beside it; also by way of another checkpoint folder."""
    run(diffusers, tmp_path / "direct", "dim")
    assert files(tmp_path / "direct")["model.safetensors"] == files(orbax.parent / "dim")["model.safetensors"]
    run(diffusers, tmp_path / "orbax", "orbax")
    run(tmp_path / "orbax", tmp_path / "back", "diffusers")
    assert files(tmp_path / "back") == files(diffusers)
    assert sorted(files(diffusers)) == [
        "dim_extra.safetensors",
        "qwen.config.json",
        "scheduler/scheduler_config.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]


def test_a_manifest_of_the_first_form(orbax, tmp_path):
    """Checkpoint folders of an earlier version: their manifests held whole headers, and the index of shards."""
    shutil.copytree(orbax, tmp_path / "old")
    path = tmp_path / "old/manifest.json"
    now = json.loads(path.read_text())
    headers = {
        file: json.dumps({"__metadata__": {}} | {name: {"dtype": dtype, "shape": []} for name, dtype in names.items()})
        for file, names in now.pop("files").items()
    }
    texts = now.pop("configs") | {"model.safetensors.index.json": "{}"}
    path.write_text(json.dumps({"drawn": now.pop("initialized")} | now | {"headers": headers, "texts": texts, "dropped": ["x"]}))
    run(tmp_path / "old", tmp_path / "dim", "dim")
    assert files(tmp_path / "dim") == files(orbax.parent / "dim")


def test_without_a_manifest_the_usual_files_are_written(orbax, tmp_path):
    shutil.copytree(orbax, tmp_path / "trained")
    (tmp_path / "trained" / "manifest.json").unlink()
    run(tmp_path / "trained", tmp_path / "dim", "dim")
    assert files(tmp_path / "dim")["model.safetensors"] == files(orbax.parent / "dim")["model.safetensors"]
    assert open_weights(tmp_path / "dim").config == open_weights(orbax).config


# The libraries load our exports


def test_diffusers_sana_paints_what_the_published_code_does(diffusers, goldens):
    """At whole timesteps, where the two agree; the published tolerance, and diffusers' other epsilon."""
    model = SanaTransformer2DModel.from_pretrained(diffusers / "transformer").eval()
    golden = {name: torch.from_numpy(tensor) for name, tensor in load_file(goldens / "sana_edit.forward.safetensors").items()}
    for case, row in ((0, 0), (1, 0), (2, 1)):
        case = f"{case}."
        latents = torch.cat([golden[case + "latents"], golden[case + "source_latents"]], 1)[row : row + 1]
        timestep = golden[case + "timestep"][row : row + 1]
        assert timestep == timestep.round()
        with torch.no_grad():
            velocity = model(
                latents,
                golden[case + "condition"][row : row + 1],
                timestep,
                encoder_attention_mask=golden[case + "condition_mask"][row : row + 1].float(),
            ).sample
        torch.testing.assert_close(velocity, golden[case + "velocity"][row : row + 1], rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of a torch tensor, in diffusers
@pytest.mark.parametrize("solver", SOLVERS)
def test_diffusers_scheduler_takes_our_steps(orbax, tmp_path, solver):
    """On a velocity that bends, from one point; float32, some ten operations a step."""
    shutil.copytree(orbax, tmp_path / "model")
    (tmp_path / "model/settings.json").write_text(json.dumps({"solver": solver, "flow_shift": 2.0}))
    run(tmp_path / "model", tmp_path / "diffusers", "diffusers")
    scheduler = DPMSolverMultistepScheduler.from_pretrained(tmp_path / "diffusers", subfolder="scheduler")
    scheduler.set_timesteps(8)
    sigma = sigmas(8, 2.0).astype(np.float64)
    np.testing.assert_allclose(scheduler.sigmas.numpy(), sigma, rtol=1e-6)
    theirs, ours, previous = torch.full((1, 1), 0.7), 0.7, 0.0
    for i, (a, b, c) in enumerate(SOLVERS[solver](sigma)):
        theirs = scheduler.step(torch.sin(3 * theirs) - sigma[i], scheduler.timesteps[i], theirs).prev_sample
        data = ours - sigma[i] * (np.sin(3 * ours) - sigma[i])
        ours, previous = a * ours + b * data + c * previous, data
    np.testing.assert_allclose(theirs.item(), ours, rtol=1e-5)


def test_diffusers_autoencoder_computes_the_same(diffusers, goldens):
    model = AutoencoderDC.from_pretrained(diffusers / "vae").eval()
    same = AutoencoderDC.from_config(json.loads((goldens / "dc_ae.config.json").read_text())).eval()
    prefix = "decoder.vae."
    same.load_state_dict({n.removeprefix(prefix): torch.from_numpy(t) for n, t in tensors_of(goldens).items() if n.startswith(prefix)})
    pixels = torch.rand(1, 3, 64, 96, generator=torch.manual_seed(0)) * 2 - 1
    with torch.no_grad():
        assert torch.equal(model.encode(pixels).latent, same.encode(pixels).latent)
        latents = same.encode(pixels).latent
        assert torch.equal(model.decode(latents).sample, same.decode(latents).sample)


def logits(folder: Path, goldens: Path) -> torch.Tensor:
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    golden = load_file(goldens / "qwen.forward.safetensors")
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(golden["0.input_ids"]), attention_mask=torch.from_numpy(golden["0.attention_mask"])).logits


def test_transformers_computes_the_same_from_our_export(tmp_path, goldens, orbax):
    source = qwen_folder(tmp_path / "qwen", goldens)
    run(source, tmp_path / "orbax", "orbax")
    run(tmp_path / "orbax", tmp_path / "back", "qwen")
    assert files(tmp_path / "back") == files(source)
    (tmp_path / "orbax" / "manifest.json").unlink()
    run(tmp_path / "orbax", tmp_path / "usual", "qwen")
    expected = logits(source, goldens)
    assert torch.equal(logits(tmp_path / "usual", goldens), expected)
    golden = torch.from_numpy(load_file(goldens / "qwen.forward.safetensors")["0.logits"])
    torch.testing.assert_close(expected, golden, rtol=1e-4, atol=1e-4)
    # From a whole Draw-In-Mind, only its encoder.
    run(orbax, tmp_path / "encoder", "qwen")
    exported = load_file(tmp_path / "encoder" / "model.safetensors")
    assert exported.keys() == {name.removeprefix("mllm.") for name in tensors_of(goldens) if name.startswith("mllm.")}
    assert logits(tmp_path / "encoder", goldens).isfinite().all()


def test_new_key_names_of_transformers_are_read_and_written(tmp_path, goldens):
    source = qwen_folder(tmp_path / "qwen", goldens)
    new = {
        name.replace("visual.", "model.visual.") if name.startswith("visual.") else name.replace("model.", "model.language_model."): tensor
        for name, tensor in load_file(source / "model.safetensors").items()
    }
    save_file(new, source / "model.safetensors", {"format": "pt"})
    run(source, tmp_path / "orbax", "orbax")
    run(tmp_path / "orbax", tmp_path / "back", "qwen")
    assert files(tmp_path / "back") == files(source)
    whole = {name: tensor for name, tensor in tensors_of(goldens).items() if not name.startswith("mllm.")}
    source = dim_folder(tmp_path / "dim", goldens, whole | {f"mllm.{name}": tensor for name, tensor in new.items()})
    run(source, tmp_path / "orbax2", "orbax")
    run(tmp_path / "orbax2", tmp_path / "back2", "dim")
    assert files(tmp_path / "back2") == files(source)


# Parts alone


def test_a_sana_pth_comes_back_with_its_keys_and_bytes(tmp_path, goldens):
    source = sana_pth(tmp_path / "sana", goldens)
    run(source, tmp_path / "orbax", "orbax")
    run(tmp_path / "orbax", tmp_path / "back", "dim")
    expected = torch.load(source, weights_only=True)["state_dict"]
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert back.keys() == expected.keys()
    assert all(back[name].tobytes() == tensor.numpy().tobytes() for name, tensor in expected.items())
    run(tmp_path / "back", tmp_path / "again", "dim")
    assert files(tmp_path / "again") == files(tmp_path / "back")


def test_diffusers_folders_alone_come_back(tmp_path, diffusers, goldens):
    for part in ("transformer", "vae"):
        printed = run(diffusers / part, tmp_path / part, "orbax")
        run(tmp_path / part, tmp_path / f"{part}-back", "diffusers")
        assert files(tmp_path / f"{part}-back") == files(diffusers / part)
        assert ("drawn at random: sana.y_embedder.y_embedding (300, 48)" in printed) == (part == "transformer")
    null = dict(checkpoint.read(tmp_path / "transformer"))["sana.y_embedder.y_embedding"]
    assert abs(null.std() * 48**0.5 - 1) < 0.05
    bare = tmp_path / "bare"
    shutil.copytree(diffusers, bare)
    (bare / "dim_extra.safetensors").unlink()
    with pytest.raises(InputError, match=r"dim_extra.safetensors: is missing"):
        open_weights(bare)
    (bare / "qwen.config.json").unlink()
    run(bare, tmp_path / "both", "orbax")
    assert open_weights(tmp_path / "both").config.parts == ("sana", "autoencoder")


def test_three_init_checkpoints_are_merged(tmp_path, goldens, diffusers):
    (tmp_path / "tokenizer.json").write_text("{}")
    encoder, sana = qwen_folder(tmp_path / "qwen", goldens), sana_pth(tmp_path / "sana", goldens)
    shutil.copy(Path(__file__).parent / "tiny_tokenizer/tokenizer.json", encoder)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assemble(encoder, sana, diffusers / "vae", tmp_path / name, condition_length=40, seed=seed, console=quiet())
    a, b, c = (dict(checkpoint.read(tmp_path / name)) for name in "abc")
    assert all(a[path].tobytes() == b[path].tobytes() for path in a)
    changed = {path for path in a if a[path].tobytes() != c[path].tobytes()}
    assert changed == {"connector.fc1.kernel", "connector.fc2.kernel", "sana.y_embedder.y_embedding"}
    null = load_file(goldens / "sana_t2i.weights.safetensors")["y_embedder.y_embedding"]
    np.testing.assert_array_equal(a["sana.y_embedder.y_embedding"][: len(null)], null)
    assert a["sana.y_embedder.y_embedding"].shape == (40, 48)
    assert a["connector.fc1.kernel"].shape == (128, 48)
    assert checkpoint.tokenizer_files(tmp_path / "a")[0].name == "tokenizer.json"
    run(tmp_path / "a", tmp_path / "dim", "dim")
    assert open_weights(tmp_path / "dim").config == open_weights(tmp_path / "a").config
    published = load_file(tmp_path / "dim" / "model.safetensors")
    assert published.keys() == tensors_of(goldens).keys(), "also the buffer that the published class wants to find"
    assert (tmp_path / "dim" / "tokenizer" / "tokenizer.json").exists()


# Known extras


def test_a_tied_head_is_an_alias(tmp_path, goldens):
    tensors = tensors_of(goldens)
    tensors["mllm.lm_head.weight"] = tensors["mllm.model.embed_tokens.weight"]
    source = dim_folder(tmp_path / "dim", goldens, tensors)
    assert "tied: mllm.lm_head.weight repeats mllm.model.embed_tokens.weight" in run(source, tmp_path / "orbax", "orbax")
    assert not any("lm_head" in path for path in checkpoint.abstract(tmp_path / "orbax"))
    run(tmp_path / "orbax", tmp_path / "back", "dim")
    assert files(tmp_path / "back") == files(source)


@pytest.mark.parametrize("make", [dim_folder, sharded])
def test_a_text_encoder_is_dropped_and_said_so(tmp_path, goldens, make):
    source = make(tmp_path / "dim", goldens)
    file = sorted(source.glob("*.safetensors"))[0]
    extra = {f"decoder.text_encoder.layers.{i}.w": np.ones((2, 3), np.float32) for i in range(3)}
    expected = files(source)
    save_file(load_file(file) | extra, file, {"format": "pt"})
    if make is sharded:
        index = json.loads((source / "model.safetensors.index.json").read_text())
        index["weight_map"] |= dict.fromkeys(extra, file.name)
        (source / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "dropped: 3 tensors of a text encoder" in run(source, tmp_path / "orbax", "orbax")
    run(tmp_path / "orbax", tmp_path / "back", "dim")
    assert files(tmp_path / "back") == expected


# Tokenizer


def test_the_tokenizer_goes_with_the_weights(tmp_path, goldens, orbax):
    tokenizer = Path(__file__).parent / "tiny_tokenizer"
    assert "tokenizer: tokenizer.json, tokenizer_config.json" in run(orbax, tmp_path / "with", "orbax", tokenizer=tokenizer)
    names = ["tokenizer.json", "tokenizer_config.json"]
    assert [file.name for file in checkpoint.tokenizer_files(tmp_path / "with")] == names
    for to, place in (("dim", "tokenizer"), ("diffusers", "tokenizer"), ("qwen", ".")):
        run(tmp_path / "with", tmp_path / to, to)
        assert all((tmp_path / to / place / name).read_bytes() == (tokenizer / name).read_bytes() for name in names)
        assert [file.name for file in open_weights(tmp_path / to).tokenizer] == names
    with pytest.raises(InputError, match="has no tokenizer"):
        run(orbax, tmp_path / "out", "dim", tokenizer=tmp_path)
