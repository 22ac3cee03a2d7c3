"""LoRAs beside PEFT and diffusers, which read ours and write theirs: the same output, and tensors equal both ways."""

import json
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from diffusers import SanaPipeline
from flax import nnx
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.numpy import load_file, save_file

from dim_jax.errors import InputError
from dim_jax.models import module
from dim_jax.models.lora import with_lora
from dim_jax.models.sana import Sana
from dim_jax.models.sana_config import SanaConfig
from dim_jax.weights.lora import Lora, sum_loras
from dim_jax.weights.lora_files import open_lora, write_lora
from dim_jax.weights.opening import open_weights
from dim_jax.weights.transforms import merge_lora
from tests.lora_fixtures import base_and_lora, changes, random_lora, same
from tests.parity.test_sana import compare, pair

CONFIG = SanaConfig(8, 4, 48, 2, 2, 8, 20, 7)
ARGS = ((4, 3), [7, 3], 7, 0)  # of `compare`: size, condition lengths, tokens, seed
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "conv_inverted", "conv_point", "linear_1", "proj_out", "patch_embed.proj"]


@pytest.fixture
def models():
    """diffusers' SANA and ours with the same weights."""
    return pair(CONFIG, 0)


def shapes(sana: Sana) -> dict[str, tuple[int, ...]]:
    return {f"sana.{path}": shape for path, shape in module.shapes(sana).items()}


def adapted(sana: Sana, *loras: tuple[Lora, float]) -> Sana:
    """Ours with LoRAs."""
    factors = {path.removeprefix("sana."): factor for path, factor in sum_loras(loras, shapes(sana)).items()}
    ranks = {path.removesuffix(".lora_a"): factor.shape[-1] for path, factor in factors.items() if path.endswith("lora_a")}
    abstract = nnx.eval_shape(lambda: Sana(sana.config, rngs=nnx.Rngs(0)))
    return module.with_parameters(with_lora(abstract, ranks), module.parameters(sana) | factors)


def uneven(sana: Sana) -> Lora:
    """All layers; some of attention have another rank and another scale."""
    some = [f"sana.blocks.{name}" for name in ("attn.qkv", "attn.proj", "cross_attn.kv_linear")]
    return Lora("uneven", random_lora(shapes(sana), 1).pairs | random_lora(shapes(sana), 2, rank=5, layers=some, scale=0.3).pairs)


def same_output(theirs: torch.nn.Module, ours: Sana) -> None:
    compare(theirs.requires_grad_(False), ours, *ARGS)


def load_by_diffusers(transformer, folder: Path) -> None:
    state, metadata = SanaPipeline.lora_state_dict(folder, return_lora_metadata=True, local_files_only=True)
    SanaPipeline.load_lora_into_transformer(state, transformer, metadata=metadata)


def other_output(theirs: torch.nn.Module, ours: Sana) -> None:
    with pytest.raises(AssertionError):
        same_output(theirs, ours)


def test_diffusers_reads_ours(models, tmp_path):
    theirs, ours = models
    lora = uneven(ours)
    write_lora(tmp_path / "lora", lora, "diffusers")
    load_by_diffusers(theirs, tmp_path / "lora")
    same_output(theirs, adapted(ours, (lora, 1.0)))
    other_output(theirs, ours)
    write_lora(tmp_path / "back", open_lora(tmp_path / "lora"), "dim")
    assert same(open_lora(tmp_path / "back"), lora)


def test_peft_reads_ours(models, tmp_path):
    theirs, ours = models
    lora = uneven(ours)
    write_lora(tmp_path / "lora", lora, "peft")
    adapted_theirs = peft.PeftModel.from_pretrained(theirs, str(tmp_path / "lora"))
    same_output(adapted_theirs, adapted(ours, (open_lora(tmp_path / "lora"), 1.0)))
    other_output(adapted_theirs, ours)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
def test_two_at_once_as_in_diffusers(models, tmp_path):
    theirs, ours = models
    loras = random_lora(shapes(ours), 1), random_lora(shapes(ours), 2, rank=2, layers=("sana.blocks.attn.qkv", "sana.t_block"))
    for name, lora in zip(("a", "b"), loras, strict=True):
        write_lora(tmp_path / name, lora, "diffusers")
        state, metadata = SanaPipeline.lora_state_dict(tmp_path / name, return_lora_metadata=True, local_files_only=True)
        SanaPipeline.load_lora_into_transformer(state, theirs, adapter_name=name, metadata=metadata)
    theirs.set_adapters(["a", "b"], [0.5, -1.5])
    same_output(theirs, adapted(ours, (loras[0], 0.5), (loras[1], -1.5)))


def test_what_diffusers_writes(models, tmp_path):
    """Queries, keys and values have factors of their own there; they come back to the bit, by way of ours, and alpha too."""
    theirs, ours = models
    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=6, target_modules=TARGETS, init_lora_weights=False)
    theirs.add_adapter(config)
    layers = get_peft_model_state_dict(theirs)
    metadata = config.to_dict() | {"target_modules": TARGETS}
    SanaPipeline.save_lora_weights(tmp_path / "theirs", layers, transformer_lora_adapter_metadata=metadata)
    lora = open_lora(tmp_path / "theirs")
    same_output(theirs, adapted(ours, (lora, 1.0)))
    other_output(theirs, ours)
    write_lora(tmp_path / "ours", lora, "dim")
    stated = json.loads((tmp_path / "ours/adapter_config.json").read_text())
    assert {12, 8} <= set(stated["rank_pattern"].values())  # joined
    write_lora(tmp_path / "back", open_lora(tmp_path / "ours"), "diffusers")
    before, after = (load_file(tmp_path / name / "pytorch_lora_weights.safetensors") for name in ("theirs", "back"))
    assert before.keys() == after.keys()
    assert all(after[name].tobytes() == tensor.tobytes() for name, tensor in before.items())
    assert {pair.scale for pair in open_lora(tmp_path / "back").pairs.values()} == {1.5}


def test_what_diffusers_writes_without_metadata_has_scale_one(models, tmp_path):
    theirs, ours = models
    torch.manual_seed(2)
    theirs.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_v"], init_lora_weights=False))
    SanaPipeline.save_lora_weights(tmp_path / "theirs", get_peft_model_state_dict(theirs))
    same_output(theirs, adapted(ours, (open_lora(tmp_path / "theirs"), 1.0)))


def test_what_peft_writes(models, tmp_path):
    """With patterns of rank and alpha, stabilised by rank; another rank in one block, and one block without."""
    theirs, ours = models
    torch.manual_seed(3)
    config = LoraConfig(
        r=4, lora_alpha=6, target_modules=["to_q", "to_v", "conv_point", "transformer_blocks.1.attn2.to_out.0"], init_lora_weights=False,
        use_rslora=True, rank_pattern={"attn1.to_q": 2, "transformer_blocks.0.ff.conv_point": 3}, alpha_pattern={"to_v": 1.5},
    )  # fmt: skip
    model = peft.get_peft_model(theirs, config)
    model.save_pretrained(str(tmp_path / "theirs"))
    lora = open_lora(tmp_path / "theirs")
    same_output(model, adapted(ours, (lora, 1.0)))
    write_lora(tmp_path / "back", lora, "peft")
    before, after = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("theirs", "back"))
    assert before.keys() == after.keys()
    assert all(after[name].tobytes() == tensor.tobytes() for name, tensor in before.items())


class Tree(torch.nn.Module):
    """The linear layers and 1 x 1 convolutions of a published checkpoint, under their names."""

    def __init__(self, tensors: dict[str, np.ndarray]):
        super().__init__()
        for name, tensor in tensors.items():
            *parents, last = name.removesuffix(".weight").split(".")
            place: torch.nn.Module = self
            for parent in parents:
                if not hasattr(place, parent):
                    place.add_module(parent, torch.nn.Module())
                place = getattr(place, parent)
            out, into = tensor.shape[:2]
            layer = torch.nn.Linear(into, out, bias=False) if tensor.ndim == 2 else torch.nn.Conv2d(into, out, 1, bias=False)
            layer.weight.data = torch.from_numpy(tensor)
            place.add_module(last, layer)


def test_peft_reads_ours_under_the_published_names(tmp_path):
    """PEFT merges a LoRA of connector and SANA into modules that are called as in the published checkpoint; ours are the same."""
    base, place = base_and_lora(tmp_path)
    names = {
        name.removesuffix(".lora_A.weight").removeprefix("base_model.model.") for name in load_file(place / "adapter_model.safetensors")
    }
    tree = Tree({name: tensor for name, tensor in load_file(base / "model.safetensors").items() if name.removesuffix(".weight") in names})
    merged = peft.PeftModel.from_pretrained(tree, str(place)).merge_and_unload().state_dict()
    ours = dict(merge_lora(open_weights(base), [(open_lora(place), 1.0)]).stream())
    np.testing.assert_allclose(merged["projector.0.weight"].numpy().T, ours["connector.fc1.kernel"], rtol=1e-6, atol=1e-6)
    for name, layer in (("attn.qkv", "attn.qkv"), ("mlp.point_conv.conv", "mlp.point_conv"), ("cross_attn.proj", "cross_attn.proj")):
        for block in (0, 1):
            tensor = merged[f"decoder.model.blocks.{block}.{name}.weight"].numpy()
            expected = ours[f"sana.blocks.{layer}.kernel"][block]
            np.testing.assert_allclose(tensor.reshape(tensor.shape[:2]).T, expected, rtol=1e-6, atol=1e-6)


def test_the_connector_stands_beside_diffusers_file(tmp_path):
    _, place = base_and_lora(tmp_path)
    lora = open_lora(place)
    for to in ("diffusers", "peft"):
        write_lora(tmp_path / to, lora, to)
        assert {name.split(".")[0] for name in load_file(tmp_path / to / "dim_extra.safetensors")} == {"projector"}
        back = open_lora(tmp_path / to)
        write_lora(tmp_path / f"{to}-back", back, "dim")
        assert same(open_lora(tmp_path / f"{to}-back"), lora)
    only = Lora("only", {slot: pair for slot, pair in lora.pairs.items() if slot.layer.startswith("connector.")})
    with pytest.raises(InputError, match="adapters of the connector alone"):
        write_lora(tmp_path / "none", only, "diffusers")
    assert not (tmp_path / "none").exists()


def test_float16_lora_stays_float16(tmp_path, models):
    lora = random_lora(shapes(models[1]))
    halves = Lora(
        "half", {slot: pair._replace(a=pair.a.astype(np.float16), b=pair.b.astype(np.float16)) for slot, pair in lora.pairs.items()}
    )
    write_lora(tmp_path / "a", halves, "diffusers")
    write_lora(tmp_path / "b", open_lora(tmp_path / "a"), "dim")
    assert same(open_lora(tmp_path / "b"), halves)


WHOLE = {"lora_A.weight": (2, 8), "lora_B.weight": (8, 2)}
Q = "base_model.model.transformer_blocks.0.attn1.to_q"


@pytest.mark.parametrize(
    ("tensors", "config", "says"),
    [
        ({"lora_A.weight": (2, 8), "lora_B.weight": (8, 2), "lora_magnitude_vector": (8,)}, {}, "of a DoRA, which is not supported"),
        (WHOLE, {"use_dora": True}, "was made with use_dora, so it is not a plain LoRA"),
        (WHOLE, {"init_lora_weights": "pissa"}, 'init_lora_weights "pissa"'),
        (WHOLE, {"bias": "all", "modules_to_save": ["x"]}, 'modules_to_save, bias "all"'),
        (WHOLE, {"peft_type": "LOHA"}, "of the kind LOHA"),
        (WHOLE, {"r": 4}, "attn1.to_q has rank 2, its config says 4"),
        (WHOLE, {"lora_alpha": "much"}, "lora_alpha of transformer_blocks.0.attn1.to_q is 'much'"),
        ({"lora_A.weight": (2, 8), "lora_B.weight": (8, 3)}, {}, "its factors are (2, 8) and (8, 3)"),
        ({"lora_A.weight": (2, 8, 1, 1), "lora_B.weight": (8, 2, 1, 1)}, {}, "expected are (rank, in) and (out, rank)"),
        ({"lora_A.weight": (2, 8)}, {}, "to_q.lora_A.weight: the other factor of the pair is missing"),
        (WHOLE, {"rank_pattern": {"(": 2}}, "rank_pattern in its config cannot be used"),
        (WHOLE | {f"../to_k.lora_{x}.weight": (2, 2) for x in "AB"}, {}, "does not fit what else there is of sana.blocks.attn.qkv"),
        ({}, {}, "holds no tensors"),
        ({"lora_down.weight": (2, 8), "lora_up.weight": (8, 2)}, {}, "expected are LAYER.lora_A.weight"),
        ({"norm.lora_A.weight": (2, 8), "norm.lora_B.weight": (8, 2)}, {}, "to_q.norm: is not a linear layer or 1 x 1 convolution of SANA"),
    ],
)  # fmt: skip
def test_what_is_no_plain_lora_is_refused(tmp_path, tensors, config, says):
    named = {f"{Q}.{name}".replace("to_q.../", ""): np.ones(shape, np.float32) for name, shape in tensors.items()}
    save_file(named, tmp_path / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"adapter_config\.json: is missing"):
        open_lora(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4} | config))
    with pytest.raises(InputError) as error:
        open_lora(tmp_path)
    assert says in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_numbers_that_are_not_finite(tmp_path):
    save_file({f"{Q}.lora_{x}.weight": np.full((2, 2), np.nan, np.float32) for x in "AB"}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"r": 2, "lora_alpha": 2}')
    with pytest.raises(InputError, match=r"lora_A\.weight, .*lora_B\.weight: not finite"):
        open_lora(tmp_path)


def test_changes_are_the_same_in_every_format(tmp_path, models):
    """The product of the factors of every kernel, by way of factors that are apart and shared."""
    lora = uneven(models[1])
    for to in ("diffusers", "peft", "dim"):
        write_lora(tmp_path / to, lora, to)
        write_lora(tmp_path / f"{to}2", open_lora(tmp_path / to), "dim")
        found = changes(open_lora(tmp_path / f"{to}2"))
        for slot, change in changes(lora).items():
            np.testing.assert_array_equal(found[slot], change)
