"""Tiny pipelines of other families, with random weights, as diffusers and transformers save them."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaSprintPipeline, SanaTransformer2DModel, SCMScheduler
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, processors
from transformers import (
    Gemma2Config,
    Gemma2Model,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from dim_jax.models.gemma import GemmaConfig
from dim_jax.models.qwen3 import Qwen3Config, Qwen3TextConfig
from dim_jax.models.qwen3_vision import Qwen3VisionConfig

HERE = Path(__file__).parent
FIRST = "<|endoftext|>"  # stands before every text in the tokenizer of the tiny SANA
# A window of 7 tokens and a cap of 5: both show at this size.
GEMMA = GemmaConfig(301, 24, 40, 3, 4, 2, 8, query_pre_attn_scalar=6, sliding_window=7, attn_logit_softcapping=5.0)
QWEN3 = Qwen3Config(
    Qwen3VisionConfig(3, 32, 48, 2, 64, num_position_embeddings=25, deepstack_visual_indexes=(0, 2), patch_size=8),
    Qwen3TextConfig(301, 64, 80, 3, 4, 2, 1e-6, 10000.0, (4, 2, 2), 512),
    290, 291, 288, 289,
)  # fmt: skip


def randomized(model: torch.nn.Module, seed: int, scale: float = 0.2) -> Any:
    """The model with random weights, norms and biases too, for inference."""
    generator = torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = scale * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise + (parameter if "norm" in name and parameter.ndim == 1 and name.endswith("weight") else 0))
    return model.eval().requires_grad_(False)


def gemma(seed: int = 0) -> Gemma2Model:
    config = Gemma2Config(**GEMMA.to_hf(), attn_implementation="eager", pad_token_id=0)
    return randomized(Gemma2Model(config), seed)


def qwen3(seed: int = 0) -> Qwen3VLForConditionalGeneration:
    return randomized(Qwen3VLForConditionalGeneration(Qwen3VLConfig(**QWEN3.to_hf())), seed)


def transformer(caption_channels: int, **options: Any) -> SanaTransformer2DModel:
    model = SanaTransformer2DModel(
        in_channels=options.pop("in_channels", 8), out_channels=8, num_attention_heads=4, attention_head_dim=8, num_layers=3,
        num_cross_attention_heads=2, cross_attention_head_dim=16, cross_attention_dim=32, caption_channels=caption_channels,
        qk_norm="rms_norm_across_heads", interpolation_scale=None, sample_size=32, **options,
    )  # fmt: skip
    model.caption_norm.weight.data += 1
    return randomized(model, 1, 0.15)


def autoencoder() -> AutoencoderDC:
    torch.manual_seed(2)
    return AutoencoderDC.from_config(json.loads((HERE / "goldens/dc_ae.config.json").read_text())).eval().requires_grad_(False)


def flow_scheduler() -> DPMSolverMultistepScheduler:
    return DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)


def text_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer.from_file(str(HERE / "tiny_tokenizer/tokenizer.json"))
    index = tokenizer.token_to_id(FIRST)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{FIRST} $A", special_tokens=[(FIRST, index)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=FIRST, bos_token=FIRST)


def sana_pipeline() -> SanaPipeline:
    parts = {"tokenizer": text_tokenizer(), "text_encoder": gemma(), "vae": autoencoder()}
    return SanaPipeline(**parts, transformer=transformer(GEMMA.hidden_size), scheduler=flow_scheduler())


def sprint_pipeline() -> SanaSprintPipeline:
    parts = {"tokenizer": text_tokenizer(), "text_encoder": gemma(), "vae": autoencoder()}
    return SanaSprintPipeline(**parts, transformer=transformer(GEMMA.hidden_size, guidance_embeds=True), scheduler=SCMScheduler())


def nchw(latents: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(latents)).permute(0, 3, 1, 2).contiguous()


# VIBE, whose code builds on these libraries and is in neither: its parts as github.com/ai-forever/VIBE describes and names them.


class EditHead(torch.nn.Module):
    """VIBE's connector: a projection, four layers of self-attention and gated MLP, a norm and a projection."""

    def __init__(self, d: int, d_out: int):
        super().__init__()
        self.input_proj = torch.nn.Linear(d, d)
        self.attn_blocks = torch.nn.ModuleList(self._layer(d) for _ in range(4))
        self.output_proj = torch.nn.Sequential(torch.nn.LayerNorm(d), torch.nn.Linear(d, d_out))

    @staticmethod
    def _layer(d: int) -> torch.nn.ModuleDict:
        mlp = {f"fc{i}": torch.nn.Linear(*sizes) for i, sizes in enumerate(((d, 4 * d), (4 * d, d), (d, 4 * d)), 1)}
        norms = {name: torch.nn.LayerNorm(d) for name in ("input_norm", "output_norm")}
        return torch.nn.ModuleDict({"attn": torch.nn.MultiheadAttention(d, 16, batch_first=True), "mlp": torch.nn.ModuleDict(mlp), **norms})

    def forward(self, states: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
        x = self.input_proj(states + queries)
        for layer in self.attn_blocks:
            y = layer["input_norm"](x)
            x = x + layer["attn"](y, y, y, need_weights=False)[0]
            y = layer["output_norm"](x)
            x = x + layer["mlp"]["fc2"](torch.nn.functional.silu(layer["mlp"]["fc1"](y)) * layer["mlp"]["fc3"](y))
        return self.output_proj(x)


class VibePipeline:
    """What VIBE computes, from its parts."""

    def __init__(self, queries: int = 12, caption_channels: int = 20):
        torch.manual_seed(3)
        self.text_encoder, self.vae, self.scheduler = qwen3(), autoencoder(), flow_scheduler()
        self.transformer = transformer(caption_channels, in_channels=16)
        self.edit_head = randomized(EditHead(QWEN3.hidden_size, caption_channels), 4)
        self.meta_queries = torch.randn(queries, QWEN3.hidden_size)

    def save_pretrained(self, folder: Path) -> Path:
        for name in ("text_encoder", "vae", "scheduler"):
            getattr(self, name).save_pretrained(folder / name)
        (folder / "transformer").mkdir()
        tensors = self.transformer.state_dict() | {f"edit_head.{name}": tensor for name, tensor in self.edit_head.state_dict().items()}
        save_file({"meta_queries": self.meta_queries, **tensors}, folder / "transformer/diffusion_pytorch_model.safetensors")
        more = {"_class_name": "VIBESanaEditingModel", "input_condition_type": "channel_cat", "edit_head_stacks_num": 4}
        more |= {"num_meta_queries": len(self.meta_queries), "meta_queries_dim": QWEN3.hidden_size}
        (folder / "transformer/config.json").write_text(json.dumps({**self.transformer.config, **more}))
        (folder / "model_index.json").write_text(json.dumps({"_class_name": "VIBESanaEditingPipeline"}))
        (folder / "tokenizer").mkdir()
        for file in (HERE / "tiny_tokenizer").glob("*.json"):
            shutil.copy(file, folder / "tokenizer")
        return folder

    def conditions(self, prompt: str, picture: Image.Image | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Condition tokens of the prompt and of none, from the states of the learned queries after the turn."""
        sentence = "what will this image be like if " if picture else "generate the image by description: "
        vision, pixels, grid = "", None, None
        if picture:
            sizes = {"patch_size": 8, "size": {"shortest_edge": 352**2, "longest_edge": 672**2}}
            read = Qwen2VLImageProcessorPil(**sizes, image_mean=[0.5] * 3, image_std=[0.5] * 3)(picture, return_tensors="pt")
            pixels, grid = read["pixel_values"], read["image_grid_thw"]
            vision = f"<|vision_start|>{'<|image_pad|>' * int(grid.prod() // 4)}<|vision_end|>"
        tokenizer = Tokenizer.from_file(str(HERE / "tiny_tokenizer/tokenizer.json"))
        ids = torch.tensor([tokenizer.encode(f"<|im_start|>user\n{vision}{sentence}{prompt}<|im_end|>\n").ids])
        model, n = self.text_encoder.model, len(self.meta_queries)
        types = torch.nn.functional.pad((ids == QWEN3.image_token_id).int(), (0, n))
        positions, _ = model.get_rope_index(torch.nn.functional.pad(ids, (0, n), value=-1), types, grid)
        embeddings = torch.cat([model.get_input_embeddings()(ids), self.meta_queries[None]], 1)
        options = {}
        if picture:
            features = model.get_image_features(pixels, grid)
            embeddings[types.bool()] = torch.cat(list(features.pooler_output))
            options = {
                "visual_pos_masks": types.bool(),
                "deepstack_visual_embeds": [torch.cat(list(x)) for x in features.deepstack_features],
            }
        states = model.language_model(inputs_embeds=embeddings, position_ids=positions, **options).last_hidden_state[:, -n:]
        return self.edit_head(states, self.meta_queries), self.edit_head(torch.zeros_like(states), self.meta_queries)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str,
        picture: Image.Image | None,
        pixels: torch.Tensor | None,
        noise: torch.Tensor,
        steps: int,
        scale: float,
        image_scale: float,
    ) -> torch.Tensor:
        """Latents; `pixels` is the picture as the autoencoder reads it. With a picture three branches are evaluated, else two."""
        prompted, null = self.conditions(prompt, picture)
        x, nothing = noise, torch.zeros_like(noise)
        source = nothing if pixels is None else self.vae.encode(pixels).latent * self.vae.config.scaling_factor
        sources, conditions = torch.cat([source, source, nothing]), torch.cat([prompted, null, null])
        self.scheduler.set_timesteps(steps)
        for t in self.scheduler.timesteps:
            latents = torch.cat([x.expand(3, -1, -1, -1), sources], 1)
            text, image, none = self.transformer(latents, conditions, t.expand(3)).sample.split(1)
            velocity = none + scale * (text - image) + image_scale * (image - none)
            x = self.scheduler.step(velocity, t, x).prev_sample
        return x
