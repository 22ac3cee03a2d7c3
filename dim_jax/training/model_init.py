"""Where a run starts: the sizes of the parts, the tokenizer, the data, and every parameter, from checkpoints or drawn anew."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from dim_jax.config import Config
from dim_jax.data.chat import VIDEO_PAD, VISION_END, VISION_START, ChatTokenizer
from dim_jax.data.example import Split
from dim_jax.data.pipeline import MixtureComponent, open_mixture
from dim_jax.data.processor import Processor
from dim_jax.data.synthetic import SYNTHETIC
from dim_jax.errors import InputError
from dim_jax.models.dc_ae_config import DCAEConfig
from dim_jax.models.module import parameters, with_parameters
from dim_jax.models.qwen import QwenConfig
from dim_jax.models.sana import Sana, grow
from dim_jax.models.sana_config import SanaConfig
from dim_jax.rng import NULL_ROWS, key_seed
from dim_jax.sharding import make_global_array
from dim_jax.weights.arrays import contiguous
from dim_jax.weights.model_config import ModelConfig
from dim_jax.weights.opening import open_weights
from dim_jax.weights.published import Weights

PRESETS: dict[str, dict[str, Callable[[], Any]]] = {
    "encoder": {"qwen_3b": QwenConfig.qwen_3b, "qwen_7b": QwenConfig.qwen_7b, "nano": QwenConfig.nano, "tiny": QwenConfig.tiny},
    "sana": {"sana_1600m": SanaConfig.sana_1600m, "nano": SanaConfig.nano, "tiny": SanaConfig.tiny},
    "autoencoder": {"f32c32": DCAEConfig.f32c32, "nano": DCAEConfig.nano, "tiny": DCAEConfig.tiny},
}


@dataclass(frozen=True)
class ModelInit:
    """The parts of a run: `parents` are the checkpoints that parts come from, by part; the others are drawn anew."""

    sizes: ModelConfig
    init_checkpoints: Mapping[str, Weights]

    @classmethod
    def open(cls, config: Config, parts: tuple[str, ...]) -> "ModelInit":
        """Open the checkpoints in `config.init`; the sizes of the other parts are the presets that `config.model` names.

        A SANA of a checkpoint grows to what `config.model` asks for: source channels for edits, rows of the null table. A run on
        synthetic data reads no file: every part is drawn anew.

        Raises:
            InputError: a checkpoint cannot be used or lacks the part; a preset is unknown; or SANA would shrink.
        """
        init = {} if config.data.source == SYNTHETIC else {part: config.init[part] for part in parts if config.init[part]}
        opened = {path: open_weights(path) for path in dict.fromkeys(init.values())}
        parents = {part: opened[path] for part, path in init.items()}
        for part, parent in parents.items():
            if part not in parent.config.parts:
                raise InputError(f"config.init.{part}: {parent.where} holds {', '.join(parent.config.parts)}. Give one that holds {part}.")
        model, found = config.model, {}
        if "encoder" in parts:
            known = parents["encoder"].config.encoder if "encoder" in parents else None
            found["encoder"] = known or _preset("encoder", model.encoder)
        if "sana" in parts:
            known = parents["sana"].config.sana if "sana" in parents else _preset("sana", model.sana)
            assert known is not None
            found["sana"] = known.grown(edit=model.edit, condition_length=model.condition_length)
        if "autoencoder" in parts:
            known = parents["autoencoder"].config.autoencoder if "autoencoder" in parents else None
            found["autoencoder"] = known or _preset("autoencoder", model.autoencoder)
        return cls(ModelConfig(**found), parents)

    @property
    def tokenizer(self) -> Path | None:
        """The folder of the tokenizer that the encoder's checkpoint brings."""
        parent = self.init_checkpoints.get("encoder")
        return parent.tokenizer[0].parent if parent is not None and parent.tokenizer else None

    def with_tokenizer(self, tokenizer: ChatTokenizer) -> "ModelInit":
        """The same with the special tokens' ids of `tokenizer` in an encoder that is drawn anew.

        Raises:
            InputError: the encoder's vocabulary is too small, or its checkpoint was trained with other ids.
        """
        encoder = self.sizes.encoder
        assert encoder is not None
        if tokenizer.largest_id >= encoder.text.vocab_size:
            raise InputError(f"{tokenizer.name}: ids up to {tokenizer.largest_id}, but the encoder has {encoder.text.vocab_size}.")
        if "encoder" in self.init_checkpoints:
            if tokenizer.image_id != encoder.image_token_id:
                raise InputError(
                    f"{tokenizer.name}: <|image_pad|> is {tokenizer.image_id}, the encoder's {encoder.image_token_id}. Use its own one."
                )
            return self
        ids = {"image_token_id": tokenizer.image_id, "video_token_id": tokenizer.id_of(VIDEO_PAD)}
        ids |= {"vision_start_token_id": tokenizer.ids[VISION_START], "vision_end_token_id": tokenizer.ids[VISION_END]}
        ids |= {"bos_token_id": None, "eos_token_id": None}
        return replace(self, sizes=replace(self.sizes, encoder=replace(encoder, **ids)))

    def processor(self, tokenizer: ChatTokenizer, config: Config) -> Processor:
        """What reads prompts and pictures of `config.data.resolution` for this encoder."""
        assert self.sizes.encoder is not None
        return Processor(
            tokenizer,
            resolution=config.data.resolution,
            condition_length=config.model.condition_length,
            layout=self.sizes.encoder.vision.layout,
        )

    def tensors(self, seed: int, like: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        """Path -> array of every parameter that `like` names, drawn or read directly into its place and dtype there."""
        wanted = dict.fromkeys(path.split(".")[0] for path in like)  # in order: the same program on every process
        places = {part: {path: leaf.sharding for path, leaf in like.items() if path.startswith(f"{part}.")} for part in wanted}

        def cast(tensors: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
            return {path: tensor.astype(like[path].dtype) for path, tensor in tensors.items()}

        found: dict[str, jax.Array] = {}
        for weights in {parent.where: parent for part, parent in self.init_checkpoints.items() if part in wanted}.values():
            here = {path: place for part in wanted if self.init_checkpoints.get(part) is weights for path, place in places[part].items()}
            found |= {path: make_global_array(tensor, here[path], like[path].dtype) for path, tensor in weights.stream(here)}
        for part in (part for part in wanted if part not in self.init_checkpoints):
            found |= jax.jit(lambda part=part: cast(self.sizes.init(part, seed)), out_shardings=places[part])()
        old = self.init_checkpoints["sana"].config.sana if "sana" in wanted and "sana" in self.init_checkpoints else None
        if old is not None and old != self.sizes.sana:
            grow_it = jax.jit(lambda tensors: cast(self._grown(old, seed, tensors)), out_shardings=places["sana"])
            found |= grow_it({path: found[path] for path in places["sana"]})
        return {path: found[path] for path in like}

    def digests(self, seed: int, parts: Iterable[str]) -> dict[str, str]:
        """Part -> a digest of all its parameters as float32, which no format or dtype of the same values changes; or that it is drawn anew.

        A tensor is read at a time.
        """
        hashes: dict[str, dict[str, str]] = {part: {} for part in parts if part in self.init_checkpoints}
        for weights in {self.init_checkpoints[part].where: self.init_checkpoints[part] for part in hashes}.values():
            here = {part for part in hashes if self.init_checkpoints[part] is weights}
            for path, tensor in weights.stream([path for path in weights.parameters if path.split(".")[0] in here]):
                data: Any = contiguous(tensor, np.dtype(np.float32))
                hashes[path.split(".")[0]][path] = hashlib.sha256(data).hexdigest()
        named = {part: hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16] for part, found in hashes.items()}
        return {part: named.get(part, f"drawn anew with seed {seed}, each part from a stream of its own") for part in parts}

    def _grown(self, old: SanaConfig, seed: int, tensors: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        new = self.sizes.sana
        assert new is not None
        abstract = nnx.eval_shape(lambda: Sana(old, rngs=nnx.Rngs(0)))
        sana = with_parameters(abstract, {path: tensors[f"sana.{path}"] for path in parameters(abstract)})
        larger = grow(sana, edit=new.is_edit, condition_length=new.condition_length, key=jax.random.key(key_seed(seed, NULL_ROWS)))
        return {f"sana.{path}": tensor for path, tensor in parameters(larger).items()}


def open_data(config: Config, split: Split) -> list[MixtureComponent]:
    """The parts of a run's mixture; raises as `open_mixture`."""
    data = config.data
    return open_mixture(data.source, data.mix.to_dict(), curriculum=data.curriculum, split=split, side=data.resolution)


def _preset(part: str, name: str) -> Any:
    if name not in PRESETS[part]:
        raise InputError(f'config.model.{part} is "{name}", but the sizes of this part are {", ".join(PRESETS[part])}.')
    return PRESETS[part][name]()
