"""PyTorch's side of `speed.py`: transformers and diffusers, eager and compiled, without padding, as their pipelines run."""

import warnings
from argparse import Namespace
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import AutoencoderDC, SanaTransformer2DModel  # pyright: ignore[reportPrivateImportUsage]
from torch import nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel

from benchmarks import speed_cases as cases
from benchmarks.speed_cases import GIB, measure, report
from dim_jax.models.dim import DimConfig
from dim_jax.models.sana_config import sana_to_diffusers

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32
FORMS = ("torch", "torch.compile")


def main(args: Namespace) -> None:
    torch.set_float32_matmul_precision("high")
    if args.threads:
        torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    edit(args) if args.work == "edit" else train(args)


class Models:
    """The four parts with random weights, in a dtype on the device."""

    def __init__(self, config: DimConfig, dtype: torch.dtype):
        d, c = config.encoder.text.hidden_size, config.sana.caption_channels
        torch.set_default_dtype(dtype)
        with torch.device(DEVICE):
            self.encoder = Qwen2_5_VLModel(Qwen2_5_VLConfig.from_dict(config.encoder.to_hf()))
            self.connector: Any = nn.Sequential(nn.Linear(d, c), nn.GELU(), nn.Linear(c, c))
            self.sana: Any = SanaTransformer2DModel.from_config(sana_to_diffusers(config.sana))
            self.autoencoder: Any = AutoencoderDC.from_config(config.autoencoder.to_hf())
        torch.set_default_dtype(torch.float32)
        for model in (self.encoder, self.connector, self.sana, self.autoencoder):
            model.eval().requires_grad_(False)


def edit(args: Namespace) -> None:
    """An edit part by part: Euler steps, as many products a step as ours."""
    config = cases.dim_config(args.size)
    models, (inputs, first, tokens) = Models(config, DTYPE), _inputs(config, args, DTYPE)
    cells, scaling = args.side // config.autoencoder.factor, config.autoencoder.scaling_factor
    pixels = torch.rand(args.batch, 3, args.side, args.side, device=DEVICE, dtype=DTYPE) * 2 - 1
    noise = torch.randn(args.batch, config.sana.latent_channels, cells, cells, device=DEVICE, dtype=DTYPE)
    sigmas = torch.linspace(1, 0, args.steps + 1)
    sigmas = (3 * sigmas / (1 + 2 * sigmas)).tolist()

    def whole(run: Callable[..., Any], network: Any, encode: Any, decode: Any) -> Any:
        condition = run("encoder", lambda: models.connector(models.encoder(**inputs).last_hidden_state[:, first:]))
        source = run("source latents", lambda: encode(pixels, return_dict=False)[0] * scaling)

        def sample() -> Any:
            x, both = noise, torch.cat([torch.zeros_like(condition), condition])
            for now, after in pairwise(sigmas):
                twice = torch.cat([torch.cat([x, source], 1)] * 2)
                timestep = torch.full((len(twice),), 1000 * now, device=DEVICE)
                free, guided = network(twice, encoder_hidden_states=both, timestep=timestep, return_dict=False)[0].chunk(2)
                x = x + (after - now) * (free + cases.GUIDANCE * (guided - free))
            return x

        latents = run("sampler", sample)
        return run("picture", lambda: decode(latents / scaling, return_dict=False)[0])

    for name in FORMS:
        parts = models.sana, models.autoencoder.encode, models.autoencoder.decode
        if name == "torch.compile":
            parts = tuple(torch.compile(part) for part in parts)

        def timed(part: str, run: Callable[[], Any], name: str = name) -> Any:
            times, result = measure(run, _wait, args.repeats)
            report(args, name, part, times)
            return result

        with torch.inference_mode():
            whole(timed, *parts)
            _reset_peak()
            times, _ = measure(lambda parts=parts: whole(lambda _, run: run(), *parts), _wait, args.repeats)
        report(args, name, "whole edit", times, tokens=tokens, **_machine())


def train(args: Namespace) -> None:
    """A step on cached states, and one with the frozen parts in it: flow matching, AdamW, clip, average, float32 parameters."""
    config = cases.dim_config(args.size)
    models, (inputs, first, tokens) = Models(config, DTYPE), _inputs(config, args, DTYPE)
    models.connector.float().train().requires_grad_(True)
    models.sana.float().train().requires_grad_(True)
    if args.remat != "none":
        models.sana.enable_gradient_checkpointing()
    params = [*models.connector.parameters(), *models.sana.parameters()]
    averages = [param.detach().clone() for param in params]
    optimizer = torch.optim.AdamW(params, lr=cases.LEARNING_RATE, weight_decay=cases.WEIGHT_DECAY, fused=True)
    cells, channels = args.side // config.autoencoder.factor, config.sana.latent_channels
    pixels = torch.rand(2, args.batch, 3, args.side, args.side, device=DEVICE, dtype=DTYPE) * 2 - 1
    stored = [torch.randn(args.batch, channels, cells, cells, device=DEVICE) for _ in range(2)]
    states = torch.randn(args.batch, tokens - first, config.encoder.text.hidden_size, device=DEVICE, dtype=DTYPE)

    def cached() -> tuple[Any, Any, Any]:
        return stored[0], stored[1], states

    @torch.no_grad()
    def online() -> tuple[Any, Any, Any]:
        scaling = config.autoencoder.scaling_factor
        clean, source = (models.autoencoder.encode(one, return_dict=False)[0].float() * scaling for one in pixels)
        return clean, source, models.encoder(**inputs).last_hidden_state[:, first:]

    for name in FORMS:
        network = torch.compile(models.sana) if name == "torch.compile" else models.sana
        for part, features in (("cached", cached), ("online", online)):
            if args.part not in (None, part):
                continue

            def step(network: Any = network, features: Any = features) -> None:
                clean, source, hidden = features()
                noise, u = torch.randn_like(clean), torch.sigmoid(torch.randn(args.batch, device=DEVICE))
                sigma = (3 * u / (1 + 2 * u))[:, None, None, None]
                x = torch.cat([(1 - sigma) * clean + sigma * noise, source], 1)
                with torch.autocast(DEVICE, torch.bfloat16, enabled=DEVICE == "cuda"):
                    condition = models.connector(hidden)
                    condition = condition * (torch.rand(args.batch, 1, 1, device=DEVICE) > 0.1)
                    velocity = network(x, encoder_hidden_states=condition, timestep=1000 * sigma.flatten(), return_dict=False)[0]
                F.mse_loss(velocity.float(), noise - clean).backward()
                nn.utils.clip_grad_norm_(params, cases.CLIP)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
                    averages, [param.detach() for param in params], 1 - cases.EMA
                )

            _reset_peak()
            try:
                times, _ = measure(step, _wait, args.repeats, in_a_row=cases.IN_A_ROW)
            except torch.OutOfMemoryError as error:
                print(f"{name}, {part}: out of memory ({str(error).splitlines()[0]})", flush=True)
                optimizer.zero_grad(set_to_none=True)
                torch.cuda.empty_cache()
                continue
            report(args, name, part, times, remat="all" if args.remat != "none" else "none", tokens=tokens - first, **_machine())


def _inputs(config: DimConfig, args: Namespace, dtype: torch.dtype) -> tuple[dict[str, Any], int, int]:
    """What the encoder reads, where the user's turn begins, and the number of tokens."""
    turns = cases.turns(config, args.side, args.batch, args.text_tokens)
    ids = torch.from_numpy(turns.ids).to(DEVICE)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == config.encoder.image_token_id).int(),
        "pixel_values": torch.from_numpy(turns.patches).flatten(0, 1).to(DEVICE, dtype),
        "image_grid_thw": torch.tensor([[1, turns.grid, turns.grid]] * args.batch, device=DEVICE),
    }
    return inputs, int(turns.user[0].argmax()), ids.shape[1]


def _wait(_: Any) -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def _reset_peak() -> None:
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()


def _machine() -> dict[str, Any]:
    peak = torch.cuda.max_memory_allocated() if DEVICE == "cuda" else 0
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"
    return {"peak_gib": round(peak / GIB, 2), "device": device, "version": f"torch {torch.__version__}"}
