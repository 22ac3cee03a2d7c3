"""Initialises a run: the sizes of its components, the tokenizer, the data, and every parameter, from checkpoints or random."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from dim_jax.config import Config
from dim_jax.data.example import Split
from dim_jax.data.pipeline import MixtureComponent, open_mixture
from dim_jax.data.synthetic import SYNTHETIC
from dim_jax.errors import InputError, check
from dim_jax.models.dc_ae_config import DCAEConfig
from dim_jax.models.lora import is_factor
from dim_jax.models.module import parameters, with_parameters
from dim_jax.models.quantized import cast_like
from dim_jax.models.qwen import QwenConfig
from dim_jax.models.sana import Sana, grow
from dim_jax.models.sana_config import SanaConfig
from dim_jax.processing.chat import VIDEO_PAD, VISION_END, VISION_START, ChatTokenizer
from dim_jax.processing.processor import Processor
from dim_jax.rng import NULL_ROWS, key_seed
from dim_jax.training.lora import init_factors
from dim_jax.training.repa import repa_widths
from dim_jax.training.student import check_teacher, grown_sizes
from dim_jax.weights.arrays import contiguous
from dim_jax.weights.loading import load_params, require_qwen
from dim_jax.weights.model_config import REPA, TEACHER, ModelConfig
from dim_jax.weights.opening import open_weights
from dim_jax.weights.published import Weights

PRESETS: dict[str, dict[str, Callable[[], Any]]] = {
    "encoder": {"qwen_3b": QwenConfig.qwen_3b, "qwen_7b": QwenConfig.qwen_7b, "nano": QwenConfig.nano, "tiny": QwenConfig.tiny},
    "sana": {"sana_1600m": SanaConfig.sana_1600m, "nano": SanaConfig.nano, "tiny": SanaConfig.tiny},
    "autoencoder": {"f32c32": DCAEConfig.f32c32, "nano": DCAEConfig.nano, "tiny": DCAEConfig.tiny},
}


@dataclass(frozen=True)
class ModelInit:
    """Sizes and initial parameters of a run's components: from `init_checkpoints`, others are random."""

    model_config: ModelConfig
    init_checkpoints: Mapping[str, Weights]

    @classmethod
    def open(cls, config: Config, components: tuple[str, ...]) -> "ModelInit":
        """Open the checkpoints in `config.init`; the other components have the sizes of the presets in `config.model`.

        A SANA from a checkpoint grows as `config.model` and `config.distill` say: source channels for edits, rows of the null table, the
        guidance scale, velocities. A teacher stays as it is. A run on synthetic data reads no file: every component is random.

        Raises:
            InputError: a checkpoint cannot be used or lacks the component; a preset is unknown; a width is not that of whole heads; SANA
                would shrink, or in a LoRA grow; the teacher reads other inputs than the student; or as `repa_widths`.
        """
        init = {} if config.data.source == SYNTHETIC else {name: config.init[name] for name in components if config.init.get(name)}
        opened = {path: open_weights(path) for path in dict.fromkeys(init.values())}
        checkpoints = {name: opened[path] for name, path in init.items()}
        for name, weights in checkpoints.items():
            check(
                _stored(name) in weights.config.parts,
                f"config.init.{name}: {weights.where} holds {', '.join(weights.config.parts)}. Give one that holds {_stored(name)}.",
            )

        def size(name: str) -> Any:
            part = _stored(name)
            return getattr(checkpoints[name].config, part) if name in checkpoints else _preset(part, config.model[part])

        sizes = {name: size(name) for name in (*PRESETS, TEACHER) if name in components}
        require_qwen(sizes.get("encoder"), "Training")
        if "sana" in sizes and (width := config.model.width):
            check(
                "sana" not in checkpoints,
                f"config.model.width is {width}, but config.init.sana names a SANA, which has its own. Set it to 0.",
            )
            sizes["sana"] = sizes["sana"].widened(width)
        if "sana" in sizes:
            grown = sizes["sana"].grow(**grown_sizes(config))
            if config.lora.rank and "sana" in checkpoints and grown != sizes["sana"]:
                raise InputError(
                    f"config.init.sana: {checkpoints['sana'].where} would grow to model.edit={grown.is_edit} and model.condition_length="
                    f"{grown.condition_length}, and a LoRA is of a checkpoint as it is: edit={sizes['sana'].is_edit}, condition_length="
                    f"{sizes['sana'].condition_length}. Set these, or give another checkpoint."
                )
            sizes["sana"] = grown
        if TEACHER in checkpoints:
            check_teacher(sizes[TEACHER], sizes["sana"], checkpoints[TEACHER].where)
        elif TEACHER in components:
            sizes[TEACHER] = replace(sizes["sana"], guidance_embeds=False, velocities=1)
        if REPA in components:
            sizes[REPA] = repa_widths(config, ModelConfig(**sizes))
        return cls(ModelConfig(**sizes), checkpoints)

    @property
    def tokenizer(self) -> Path | None:
        """The tokenizer's folder in the encoder's checkpoint."""
        weights = self.init_checkpoints.get("encoder")
        return weights.tokenizer[0].parent if weights is not None and weights.tokenizer else None

    def with_tokenizer(self, tokenizer: ChatTokenizer) -> "ModelInit":
        """The same with the special tokens' ids of `tokenizer` in a randomly initialised encoder.

        Raises:
            InputError: the encoder's vocabulary is too small, or its checkpoint was trained with other ids.
        """
        encoder = self.model_config.encoder
        assert encoder is not None
        if tokenizer.max_id >= encoder.text.vocab_size:
            raise InputError(f"{tokenizer.name}: ids up to {tokenizer.max_id}, but the encoder has {encoder.text.vocab_size}.")
        if "encoder" in self.init_checkpoints:
            check(
                tokenizer.image_id == encoder.image_token_id,
                f"{tokenizer.name}: <|image_pad|> is {tokenizer.image_id}, the encoder's {encoder.image_token_id}. Use its own one.",
            )
            return self
        ids = {"image_token_id": tokenizer.image_id, "video_token_id": tokenizer.token_id(VIDEO_PAD)}
        ids |= {"vision_start_token_id": tokenizer.ids[VISION_START], "vision_end_token_id": tokenizer.ids[VISION_END]}
        ids |= {"bos_token_id": None, "eos_token_id": None}
        return replace(self, model_config=replace(self.model_config, encoder=replace(encoder, **ids)))

    def processor(self, tokenizer: ChatTokenizer, config: Config) -> Processor:
        """The processor of prompts and pictures of `config.data.resolution` for this encoder."""
        assert self.model_config.encoder is not None
        return Processor(
            tokenizer,
            resolution=config.data.resolution,
            condition_length=config.model.condition_length,
            layout=self.model_config.encoder.vision.layout,
        )

    def init_params(self, seed: int, abstract: Mapping[str, Any]) -> dict[str, Any]:
        """The initial value of every parameter in `abstract`, drawn or read directly into its sharding and dtype."""
        factors = {path: leaf for path, leaf in abstract.items() if is_factor(path)}
        abstract = {path: leaf for path, leaf in abstract.items() if path not in factors}
        components = dict.fromkeys(path.split(".")[0] for path in abstract)  # in order: the same program on every process
        by_component = {name: {path: leaf for path, leaf in abstract.items() if path.startswith(f"{name}.")} for name in components}
        params: dict[str, Any] = init_factors(seed, factors) if factors else {}
        for weights, names in self._by_checkpoint(components):
            stored = {_stored(path): path for name in names for path in by_component[name]}
            loaded = load_params(weights, {path: abstract[ours] for path, ours in stored.items()})
            params |= {stored[path]: param for path, param in loaded.items()}
        for name in components:
            if name not in self.init_checkpoints:
                leaves, tree = jax.tree.flatten(by_component[name])
                params |= _initializer(self.model_config.of(name), name, seed, tuple(leaves), tree)()
        old_config = self.init_checkpoints["sana"].config.sana if "sana" in components and "sana" in self.init_checkpoints else None
        if old_config is not None and old_config != self.model_config.sana:
            like = by_component["sana"]
            grow_sana = jax.jit(lambda params: _cast(self._grow(old_config, seed, params), like), out_shardings=_shardings(like))
            params |= grow_sana({path: params[path] for path in like if path in params})
        return {path: params[path] for path in (*abstract, *factors)}

    def digests(self, seed: int, components: Iterable[str]) -> dict[str, str]:
        """Component -> a digest of all its parameters as float32, independent of format and dtype; or the seed of its random draw. Reads
        one tensor at a time.
        """
        hashes: dict[str, dict[str, str]] = {}
        for weights, names in self._by_checkpoint(components):
            hashes |= {name: {} for name in names}
            for path, tensor in weights.stream([path for path in weights.parameters if path.split(".")[0] in names]):
                data: Any = contiguous(tensor, np.dtype(np.float32))
                hashes[path.split(".")[0]][path] = hashlib.sha256(data).hexdigest()
        digests = {name: hashlib.sha256(json.dumps(by_path, sort_keys=True).encode()).hexdigest()[:16] for name, by_path in hashes.items()}
        return {name: digests.get(name, f"drawn anew with seed {seed}, each part from a stream of its own") for name in components}

    def _by_checkpoint(self, components: Iterable[str]) -> Iterator[tuple[Weights, list[str]]]:
        """Each checkpoint once, with its components among `components`; again with the teacher, whose parameters it calls SANA's."""
        names = [name for name in components if name in self.init_checkpoints]
        if TEACHER in names:
            names.remove(TEACHER)
            yield self.init_checkpoints[TEACHER], [TEACHER]
        for weights in {id(weights): weights for weights in map(self.init_checkpoints.__getitem__, names)}.values():
            yield weights, [name for name in names if self.init_checkpoints[name] is weights]

    def _grow(self, old_config: SanaConfig, seed: int, params: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        config = self.model_config.sana
        assert config is not None
        abstract = nnx.eval_shape(lambda: Sana(old_config, rngs=nnx.Rngs(0)))
        sana = with_parameters(abstract, {path: params[f"sana.{path}"] for path in parameters(abstract)})
        larger = grow(
            sana, edit=config.is_edit, condition_length=config.condition_length, guidance_embeds=config.guidance_embeds,
            velocities=config.velocities, key=jax.random.key(key_seed(seed, NULL_ROWS)),
        )  # fmt: skip
        return {f"sana.{path}": param for path, param in parameters(larger).items()}


@cache
def _initializer(
    model_config: ModelConfig, component: str, seed: int, leaves: tuple[jax.ShapeDtypeStruct, ...], tree: Any
) -> Callable[[], dict[str, Any]]:
    """What draws a component like `leaves` of `tree`. Compiled once: a run draws frozen parameters again, for its export."""
    like = jax.tree.unflatten(tree, leaves)
    return jax.jit(lambda: _cast(model_config.init(component, seed), like), out_shardings=_shardings(like))


def _cast(params: Mapping[str, jax.Array], like: Mapping[str, Any]) -> dict[str, Any]:
    return {path: cast_like(param, like[path]) for path, param in params.items()}


def _shardings(like: Mapping[str, Any]) -> dict[str, Any]:
    return {path: jax.tree.map(lambda array: array.sharding, leaf) for path, leaf in like.items()}


def open_data(config: Config, split: Split) -> list[MixtureComponent]:
    """The mixture of a run. Errors as in `open_mixture`."""
    data = config.data
    return open_mixture(data.source, data.mix.to_dict(), curriculum=data.curriculum, split=split, side=data.resolution)


def _stored(name: str) -> str:
    """What a checkpoint calls a component, or a parameter: a teacher is the SANA of its own."""
    return f"sana{name.removeprefix(TEACHER)}" if name.split(".")[0] == TEACHER else name


def _preset(component: str, name: str) -> Any:
    if name not in PRESETS[component]:
        raise InputError(f'config.model.{component} is "{name}", but the sizes of this part are {", ".join(PRESETS[component])}.')
    return PRESETS[component][name]()
