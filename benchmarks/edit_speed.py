"""How long one edit takes at full size on one accelerator, part by part, and the same parts in PyTorch on the same card.

    python benchmarks/edit_speed.py [--side 1024] [--batch 1] [--only jax|torch] [--tiny]

Weights are random, inputs are random and never zero: speed does not depend on their values. Weights and computation are bfloat16.
Each framework runs in a process of its own. Ours is `dim_jax` with the condition padded to its length bucket, as `EditPipeline` runs
it; PyTorch's is transformers and diffusers without padding, as their pipelines run it, eager and (SANA and DC-AE) compiled. A time is
the median of `--repeats` after two more. Memory is what the framework's allocator held at its peak; ours includes what XLA takes to
choose kernels.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

GUIDANCE, STEPS, TEXT_TOKENS, SYSTEM_TOKENS = 7.5, 30, 330, 14
PARTS = ("encoder", "condition keys", "source latents", "sampler", "picture")
GIB = 2**30


def measure(run: Callable[[], Any], wait: Callable[[Any], Any], repeats: int) -> tuple[float, Any]:
    """Median milliseconds of `run`, each time until `wait` on its result returns, and the last result."""
    times, result = [], None
    for _ in range(repeats + 2):
        start = time.perf_counter()
        result = run()
        wait(result)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[2:]), result


def report(framework: str, part: str, **numbers: Any) -> None:
    print(json.dumps({"framework": framework, "part": part, **numbers}), flush=True)


def turn(side: int, batch: int, image_token: int, vocabulary: int) -> tuple[Any, Any, Any, int]:
    """Token ids, the user turn, random patches of one square picture a row, and its patches a side: a chat turn's shape, no text."""
    import numpy as np

    rng, patches = np.random.default_rng(0), round(side / 28) * 2
    picture = (patches // 2) ** 2
    ids = rng.integers(0, min(vocabulary, image_token) - 10, (batch, SYSTEM_TOKENS + picture + 2 + TEXT_TOKENS))
    ids[:, SYSTEM_TOKENS + 1 : SYSTEM_TOKENS + 1 + picture] = image_token
    user = np.zeros(ids.shape, bool)
    user[:, SYSTEM_TOKENS:] = True
    return ids, user, rng.normal(size=(batch, patches**2, 3 * 2 * 14 * 14)).astype(np.float32), patches


def run_jax(args: argparse.Namespace) -> None:
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    from dim_jax.data.inputs import encoder_inputs
    from dim_jax.models import module
    from dim_jax.models.dc_ae_config import DCAEConfig
    from dim_jax.models.dim import Dim, DimConfig
    from dim_jax.models.qwen import QwenConfig
    from dim_jax.models.sana_config import SanaConfig
    from dim_jax.sampling import LENGTHS

    config = DimConfig.dim_4_6b(edit=True)
    if args.tiny:
        config = DimConfig(QwenConfig.tiny(), SanaConfig(16, 8, 64, 2, 2, 16, 24, 512), DCAEConfig.tiny())
    dtype = jnp.float32 if args.tiny else jnp.bfloat16
    abstract = nnx.eval_shape(lambda: Dim(config, dtype=dtype, rngs=nnx.Rngs(0)))
    shapes = module.shapes(abstract)
    # One random pool serves every tensor: drawing each would compile a program for each shape.
    pool = 0.02 * jax.random.normal(jax.random.key(0), (max(map(math.prod, shapes.values())),), dtype)
    dim = module.with_parameters(abstract, {path: pool[: math.prod(shape)].reshape(shape) for path, shape in shapes.items()})
    del pool

    ids, user, patches, grid = turn(args.side, args.batch, config.encoder.image_token_id, config.encoder.text.vocab_size)
    inputs = encoder_inputs(
        ids, np.ones(ids.shape, bool), user, list(patches), [(grid, grid)] * args.batch,
        image_token_id=config.encoder.image_token_id, layout=config.encoder.vision.layout,
    )  # fmt: skip
    inputs = jax.tree.map(jnp.asarray, inputs)
    length = min(length for length in LENGTHS if length >= user[0].sum())
    pixels = jax.random.uniform(jax.random.key(1), (args.batch, args.side, args.side, 3), minval=-1)
    seeds, cells = jnp.arange(args.batch), args.side // config.autoencoder.factor

    def keys(sana, condition, mask):
        return sana.encode_condition(condition, mask), sana.null_condition(mask)

    def paint(dim, keys, source):
        condition, null = keys
        return dim.paint(condition, seeds, (cells, cells), source, unconditional=null, guidance_scale=GUIDANCE, num_steps=STEPS)

    autoencoder = type(dim.autoencoder)
    functions = dict(
        zip(PARTS, (lambda dim, x: dim.condition(x, length), keys, autoencoder.encode, paint, autoencoder.decode), strict=True)
    )
    programs = {}

    def edit(run: Callable[..., Any]) -> Any:
        condition, mask = run("encoder", dim, inputs)
        condition = run("condition keys", dim.sana, condition, mask)
        source = run("source latents", dim.autoencoder, pixels)
        return run("picture", dim.autoencoder, run("sampler", dim, condition, source))

    def compile_and_measure(part: str, *arguments: Any) -> Any:
        start = time.perf_counter()
        programs[part] = jax.jit(functions[part]).lower(*arguments).compile()
        compiled = time.perf_counter() - start
        ms, result = measure(lambda: programs[part](*arguments), jax.block_until_ready, args.repeats)
        work = programs[part].memory_analysis().temp_size_in_bytes
        report("jax", part, ms=round(ms, 2), compile_s=round(compiled, 1), work_gib=round(work / GIB, 2))
        return result

    picture = edit(compile_and_measure)
    if not bool(jnp.isfinite(picture).all()):
        raise SystemExit("The picture has values that are not finite: the times would mean nothing.")
    ms, _ = measure(lambda: edit(lambda part, *arguments: programs[part](*arguments)), jax.block_until_ready, args.repeats)
    weights = sum(value.nbytes for value in module.parameters(dim).values())
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
    numbers = {"peak_gib": round(peak / GIB, 2), "weights_gib": round(weights / GIB, 2), "tokens": ids.shape[1], "condition": length}
    report("jax", "whole edit", ms=round(ms, 2), **numbers, device=jax.devices()[0].device_kind, version=jax.__version__)


def run_torch(args: argparse.Namespace) -> None:
    import torch
    from diffusers import AutoencoderDC, SanaTransformer2DModel
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel

    from dim_jax.models.dc_ae_config import DCAEConfig
    from dim_jax.models.qwen import QwenConfig

    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = QwenConfig.tiny() if args.tiny else QwenConfig.qwen_3b()
    autoencoder_sizes = DCAEConfig.tiny() if args.tiny else DCAEConfig.f32c32()
    latent = autoencoder_sizes.latent_channels
    heads, head, cross, width, blocks, caption = (4, 16, 2, 64, 2, 24) if args.tiny else (70, 32, 20, 2240, 20, 2304)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32 if args.tiny else torch.bfloat16)
    with torch.device(device):
        encoder = Qwen2_5_VLModel(Qwen2_5_VLConfig.from_dict(sizes.to_hf()))
        connector = torch.nn.Sequential(
            torch.nn.Linear(sizes.text.hidden_size, caption), torch.nn.GELU(), torch.nn.Linear(caption, caption)
        )
        sana = SanaTransformer2DModel(
            in_channels=2 * latent, out_channels=latent, num_attention_heads=heads, attention_head_dim=head, num_layers=blocks,
            num_cross_attention_heads=cross, cross_attention_head_dim=width // cross, cross_attention_dim=width,
            caption_channels=caption, qk_norm="rms_norm_across_heads",
        )  # fmt: skip
        autoencoder = AutoencoderDC.from_config(autoencoder_sizes.to_hf())
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    models = [model.eval().requires_grad_(False) for model in (encoder, connector, sana, autoencoder)]

    ids, user, patches, grid = turn(args.side, args.batch, sizes.image_token_id, sizes.text.vocab_size)
    ids = torch.from_numpy(ids).to(device)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == sizes.image_token_id).int(),
        "pixel_values": torch.from_numpy(patches).flatten(0, 1).to(device, dtype),
        "image_grid_thw": torch.tensor([[1, grid, grid]] * args.batch, device=device),
    }
    first = int(user[0].argmax())
    cells = args.side // autoencoder_sizes.factor
    pixels = torch.rand(args.batch, 3, args.side, args.side, device=device, dtype=dtype) * 2 - 1
    noise = torch.randn(args.batch, latent, cells, cells, device=device, dtype=dtype)
    sigmas = torch.linspace(1, 0, STEPS + 1)
    sigmas = (3 * sigmas / (1 + 2 * sigmas)).tolist()

    def wait(_: Any) -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def edit(run: Callable[..., Any], network: Any, encode: Any, decode: Any) -> Any:
        condition = run("encoder", lambda: connector(encoder(**inputs).last_hidden_state[:, first:]))
        source = run("source latents", lambda: encode(pixels, return_dict=False)[0] * autoencoder_sizes.scaling_factor)

        def sample() -> Any:
            x, both = noise, torch.cat([torch.zeros_like(condition), condition])
            for now, after in pairwise(sigmas):
                twice = torch.cat([torch.cat([x, source], 1)] * 2)
                timestep = torch.full((len(twice),), 1000 * now, device=device)
                free, guided = network(twice, encoder_hidden_states=both, timestep=timestep, return_dict=False)[0].chunk(2)
                x = x + (after - now) * (free + GUIDANCE * (guided - free))
            return x

        latents = run("sampler", sample)
        return run("picture", lambda: decode(latents / autoencoder_sizes.scaling_factor, return_dict=False)[0])

    forms = {"torch": (sana, autoencoder.encode, autoencoder.decode)}
    if not args.tiny:
        forms["torch.compile"] = tuple(torch.compile(form) for form in forms["torch"])
    for name, form in forms.items():

        def timed(part: str, run: Callable[[], Any], name: str = name) -> Any:
            ms, result = measure(run, wait, args.repeats)
            report(name, part, ms=round(ms, 2))
            return result

        with torch.inference_mode():
            edit(timed, *form)
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            ms, _ = measure(lambda form=form: edit(lambda _, run: run(), *form), wait, args.repeats)
        peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
        weights = sum(tensor.nbytes for model in models for tensor in model.parameters())
        card = torch.cuda.get_device_name() if device == "cuda" else device
        numbers = {"peak_gib": round(peak / GIB, 2), "weights_gib": round(weights / GIB, 2), "tokens": ids.shape[1]}
        report(name, "whole edit", ms=round(ms, 2), **numbers, device=card, version=torch.__version__)


def compare(args: argparse.Namespace) -> None:
    """Each framework in a process of its own, then one table of milliseconds, shares of the edit and ratios to ours."""
    rows: dict[str, dict[str, dict]] = {}
    for framework in ("jax", "torch"):
        command = [sys.executable, __file__, *sys.argv[1:], "--only", framework]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout or ():
                print(line, end="", flush=True)
                row = json.loads(line)
                rows.setdefault(row["framework"], {})[row["part"]] = row
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed with exit code {process.returncode}.")
    others = [name for name in rows if name != "jax"]
    print(f"\n| part | dim_jax ms | share | {' | '.join(f'{name} ms | ratio' for name in others)} |")
    print(f"|---|---|---|{'---|---|' * len(others)}")
    ours = rows["jax"]
    for part, row in ours.items():
        cells = [f"{row['ms']:.1f}", f"{row['ms'] / ours['whole edit']['ms']:.0%}"]
        for name in others:
            other = rows[name].get(part)  # PyTorch computes the condition's keys and values anew in every step
            cells += [f"{other['ms']:.1f}", f"{other['ms'] / row['ms']:.2f}"] if other else ["", ""]
        print(f"| {part} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=1024, help="pixels a side of source and result")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--tiny", action="store_true", help="tiny models in float32: whether the script works, not how fast")
    parser.add_argument("--only", choices=["jax", "torch"], help="one framework, in this process, without the table")
    args = parser.parse_args()
    {"jax": run_jax, "torch": run_torch, None: compare}[args.only](args)


if __name__ == "__main__":
    main()
