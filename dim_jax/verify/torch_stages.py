"""The stages as PyTorch computes them, in float32 on the CPU: transformers, diffusers, and the published sampler.

Weights come through our table under the names of these libraries, as views of the same arrays. Where the published SANA differs from
diffusers' (a truncated timestep, 1e-8 in linear attention, 1e-6 in cross-attention's norms), this follows the published one.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import transformers
from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
from diffusers.models.transformers.sana_transformer import SanaTransformer2DModel
from jaxtyping import Float
from PIL import Image
from torch import nn
from transformers import AutoTokenizer, Qwen2_5_VLConfig, Qwen2_5_VLModel, Qwen2VLImageProcessorPil

from dim_jax.models.sana_config import sana_to_diffusers
from dim_jax.processing.chat import tokenizer_path
from dim_jax.verify.case import PROMPT, Case
from dim_jax.verify.stages import VELOCITIES, Stages, Tensors
from dim_jax.weights import dc_ae, dim, qwen, sana
from dim_jax.weights.table import Row, tensor_mappings, to_hf

SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"


class TorchStages:
    """The reference; `tokenizer` is a folder, or a hub id."""

    name = f"PyTorch {torch.__version__}, transformers {transformers.__version__}"

    def __init__(self, case: Case, tokenizer: str):
        self.case, self.tokenizer = case, tokenizer

    @torch.inference_mode()
    def encoder(self, tensors: Tensors) -> Stages:
        """As `JaxStages.encoder`, but leaves `tensors` as they are."""
        config, side, factor = self.case.config.encoder, self.case.settings["resolution"], 2 * self.case.config.encoder.vision.patch_size
        square = max(factor, round(side / factor) * factor)
        layout = config.vision.layout
        prepare = Qwen2VLImageProcessorPil(
            patch_size=layout.patch_size, merge_size=layout.merge_size, temporal_patch_size=layout.temporal_patch_size,
            min_pixels=4 * 28 * 28, max_pixels=16384 * 28 * 28,
        )  # fmt: skip
        pixels = prepare(self.case.picture.resize((square, square), Image.Resampling.BICUBIC), return_tensors="pt")
        count = int(pixels["image_grid_thw"].prod()) // layout.group
        text = SYSTEM + "<|image_pad|>" * count + "<|vision_end|>" + PROMPT + "<|im_end|>\n"
        ids = torch.tensor([AutoTokenizer.from_pretrained(tokenizer_path(self.tokenizer))(text, add_special_tokens=False).input_ids])
        rows = tuple(row for row in qwen.NEW_ROWS if row not in qwen.HEAD)
        model = _load(lambda: Qwen2_5_VLModel(Qwen2_5_VLConfig(**config.to_hf())), rows, "encoder.", tensors, drop="model.")
        hidden = model(
            input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=(ids == config.image_token_id).int(), **pixels
        ).last_hidden_state  # fmt: skip
        return {"tokens": ids[0].numpy(), "patches": pixels["pixel_values"].numpy(), "encoder states": hidden[0].numpy()}

    @torch.inference_mode()
    def painter(self, tensors: Tensors, hidden: Float[np.ndarray, "t d"]) -> Stages:
        """As `JaxStages.painter`, but leaves `tensors` as they are."""
        case, config, side = self.case, self.case.config, self.case.settings["resolution"]
        d, c = config.encoder.text.hidden_size, config.sana.caption_channels
        connector = _load(lambda: nn.Sequential(nn.Linear(d, c), nn.GELU(), nn.Linear(c, c)), dim.CONNECTOR, "connector.", tensors)
        condition = connector(torch.from_numpy(hidden)[None, case.inputs.user_turn[0]])
        stages = {"condition": condition[0].numpy()}
        vae = _load(lambda: AutoencoderDC.from_config(config.autoencoder.to_hf()), dc_ae.ROWS, "autoencoder.", tensors)
        pixels = torch.from_numpy(np.asarray(case.picture.resize((side, side), Image.Resampling.BILINEAR), np.float32))
        source = vae.encode((pixels / 127.5 - 1).permute(2, 0, 1)[None]).latent * config.autoencoder.scaling_factor
        stages["source latents"] = _nhwc(source)[0]
        network = _load(lambda: SanaTransformer2DModel.from_config(sana_to_diffusers(config.sana)), sana.DIFFUSERS_ROWS, "sana.", tensors)
        for block in network.transformer_blocks:
            block.attn1.processor = _linear_attention
            block.attn2.norm_q.eps = block.attn2.norm_k.eps = 1e-6
        null = torch.from_numpy(tensors["sana.y_embedder.y_embedding"][None, : condition.shape[1]])
        branches = torch.cat([null, condition])

        def velocity(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            """Unconditional and conditional."""
            latents_in = torch.cat([x, source], 1) if config.sana.is_edit else x
            timestep = torch.floor(sigma * 1000).expand(2)
            return network(torch.cat([latents_in, latents_in]), encoder_hidden_states=branches, timestep=timestep).sample

        noise = torch.from_numpy(case.noise).permute(2, 0, 1)[None]
        for sigma, name in VELOCITIES.items():
            noisy = (1 - sigma) * source + sigma * noise
            stages[name] = _nhwc(velocity(noisy, torch.tensor(sigma)))
        settings = case.settings
        latents = sample(velocity, noise, settings["num_steps"], settings["guidance_scale"], settings["flow_shift"])
        stages["latents"] = _nhwc(latents)[0]
        stages["picture"] = _nhwc(vae.decode(latents / config.autoencoder.scaling_factor).sample)[0]
        return stages


Velocity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def sample(velocity: Velocity, x: torch.Tensor, steps: int, guidance_scale: float, flow_shift: float) -> torch.Tensor:
    """DPM-Solver++ 2M (arXiv 2211.01095, algorithm 2) on a flow, alpha = 1 - sigma, as the published sampler runs it."""
    s = 1 - torch.linspace(1, 1 / 1000, steps + 1)
    sigmas = (flow_shift * s / (1 + (flow_shift - 1) * s)).flip(0)
    previous, step_before = x, torch.tensor(0.0)
    for i, (now, after) in enumerate(pairwise(sigmas)):
        free, guided = ((1 - now) * velocity(x, now) + x).chunk(2)  # predictions of the noise
        data = (x - now * (free + guidance_scale * (guided - free))) / (1 - now)
        step = torch.log((1 - after) / after) - torch.log((1 - now) / now)  # infinite at the end
        toward = data
        if 0 < i < steps - 1:
            toward = data + (data - previous) * step / step_before / 2
        x = after / now * x - (1 - after) * torch.expm1(-step) * toward
        previous, step_before = data, step
    return x


def _linear_attention(attn: Any, hidden_states: torch.Tensor, **_: object) -> torch.Tensor:
    """ReLU linear attention with the published epsilon; diffusers' own is 1e-15."""
    q, k = (torch.relu(norm(to(hidden_states))) for norm, to in ((attn.norm_q, attn.to_q), (attn.norm_k, attn.to_k)))
    q, k, v = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (q, k, attn.to_v(hidden_states)))
    total = q @ k.sum(2)[..., None]
    return attn.to_out[0]((q @ (k.mT @ v) / (total + 1e-8)).transpose(1, 2).flatten(2))


def _load(make: Callable[[], Any], rows: Sequence[Row], prefix: str, tensors: Tensors, drop: str = "") -> Any:
    """A model whose parameters are views of a part's `tensors`."""
    ours = {path.removeprefix(prefix): tensor for path, tensor in tensors.items() if path.startswith(prefix)}
    table = tensor_mappings(rows, {path: ours[path].shape for path in ours if path not in ("y_embedder.y_embedding", "lm_head.kernel")})
    with _no_parameters():
        model = make()
    model.load_state_dict({name.removeprefix(drop): torch.from_numpy(x) for name, x in to_hf(table, ours.__getitem__)}, assign=True)
    return model.eval()


@contextmanager
def _no_parameters() -> Iterator[None]:
    """Modules that are made here have parameters without memory; buffers are as always."""
    register = nn.Module.register_parameter

    def without(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        register(self, name, None if param is None else nn.Parameter(param.to("meta"), requires_grad=False))

    nn.Module.register_parameter = without
    try:
        yield
    finally:
        nn.Module.register_parameter = register


def _nhwc(x: torch.Tensor) -> np.ndarray:
    return x.permute(0, 2, 3, 1).numpy()
