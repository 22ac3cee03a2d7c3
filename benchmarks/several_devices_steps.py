"""What `several_devices.py` measures in processes of their own: one line of JSON for each result."""

import json
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from benchmarks import speed_cases as cases
from benchmarks.speed_cases import measure
from benchmarks.speed_jax import machine, random_dim, stage_two, training
from dim_jax import processes
from dim_jax.batching import Request, Source
from dim_jax.models.quantized import Quantize
from dim_jax.pipeline import EditPipeline
from dim_jax.processing.chat import ChatTokenizer
from dim_jax.processing.pictures import open_picture
from dim_jax.processing.processor import Processor
from dim_jax.processing.tokenizer import train_tokenizer
from dim_jax.sampling import Sampler
from dim_jax.settings import Settings
from dim_jax.sharding import MESH_AXES, Sharding
from dim_jax.training.model_init import ModelInit
from dim_jax.training.objectives import dim_config
from dim_jax.weights.bundled import bundled_checkpoint
from dim_jax.weights.model_config import ModelConfig

SENTENCE = "A red boat lies at the quay of a small town, and only its sail becomes blue; the sea, the sky and all else stay. "

Row = dict[str, Any]


def equal(work: Row) -> Iterator[Row]:
    """The bundled model's pictures on a mesh beside those of one device, in grey levels of 255."""
    picture, prompts = open_picture(bundled_checkpoint() / "samples/woman.png"), [f"Give the woman {c} hair." for c in ("white", "red")]
    results = []
    for mesh in (None, work["mesh"]):
        pipeline = EditPipeline.from_pretrained(bundled_checkpoint(), dtype=work["dtype"], mesh=mesh)
        settings = replace(pipeline.sampler.settings, num_steps=work["num_steps"])
        painted = pipeline(prompts, [picture] * 2, seeds=[0, 1], settings=settings)
        results.append(np.stack([np.asarray(one.image, int) for one in painted]))
    off = np.abs(results[0] - results[1])
    yield {"largest": int(off.max()), "mean": round(float(off.mean()), 4), "device": machine()["device"]}


def paint(work: Row) -> Iterator[Row]:
    """Edits by a random model through `Sampler.paint`, from pictures and texts to pictures: one, then as many as the mesh has rows."""
    sampler, requests, settings = random_edit(work)
    for batch in dict.fromkeys((1, len(requests))):
        compile_s, times = timed(lambda batch=batch: list(sampler.paint(requests[:batch], settings)), work["repeats"])
        yield {"batch": batch, "ms": round(float(np.median(times)), 1), "compile_s": compile_s} | machine()


def random_edit(work: Row, *, quantize: Quantize | None = None, offload: bool = False) -> tuple[Sampler, list[Request], Settings]:
    """A random model on the mesh of `work`, if it has one, and as many edits of a random picture as it paints at once; `quantize` and
    `offload` as in `Sampler.from_pretrained`."""
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    config = cases.dim_config(work["size"])
    sizes, processor = _with_tokenizer(ModelConfig(config.encoder, config.sana, config.autoencoder), work["side"])
    sharding = Sharding.for_painting(work["mesh"], sizes) if work.get("mesh") else None
    place = sharding.param_sharding if sharding else lambda path: None
    dim = random_dim(dim_config(sizes), dtype, place, quantize=quantize, on_host=offload)
    sampler = Sampler(dim, processor, "random", sharding=sharding, quantize=quantize, offload=offload)
    rng, side = np.random.default_rng(0), work["side"]
    rows = work.get("rows", 1) * (sharding.num_batch_shards if sharding else 1)
    source = Source(Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)))
    prompt = SENTENCE * max(1, work["text_tokens"] // len(processor.tokenizer.encode(SENTENCE)))
    requests = [Request(prompt, seed, (side, side), source) for seed in range(rows)]
    return sampler, requests, Settings(num_steps=work["num_steps"], resolution=side, batch_size=rows)


def train(work: Row) -> Iterator[Row]:
    """Steps of stage II on the same random rows, on a mesh of all devices of all processes: ten losses, and the time of a step."""
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    args = Namespace(**{key: work[key] for key in ("size", "side", "batch", "text_tokens", "remat")})
    shape = {axis: work["mesh"].get(axis, 1) for axis in MESH_AXES}
    changes = {f"sharding__{axis}": str(size) for axis, size in shape.items()}
    model_config, config = stage_two(args, data__batch_size=str(args.batch), model__dtype=jnp.dtype(dtype).name, **changes)
    count = int(np.prod(list(shape.values())))
    sharding = Sharding.open(config, model_config, jax.devices()[:count])
    once, tokens = training(args, work["part"], config, model_config, sharding, dtype)
    losses: list[Any] = []

    def step() -> Any:
        losses.append(once())
        return losses[-1]

    since = time.perf_counter()
    jax.block_until_ready(step())
    compile_s = round(time.perf_counter() - since, 1)
    times, _ = measure(step, jax.block_until_ready, work["repeats"])
    first_losses = [float(loss) for loss in losses[:10]]
    yield {"ms": round(float(np.median(times)), 2), "losses": first_losses, "tokens": tokens, "compile_s": compile_s} | machine()


def timed(run: Callable[[], Any], repeats: int) -> tuple[float, list[float]]:
    """Seconds of the first call, which compiles, and milliseconds of each of `repeats` later ones; each ends on the host."""
    seconds = []
    for _ in range(repeats + 1):
        since = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - since)
    return round(seconds[0], 1), [1000 * one for one in seconds[1:]]


def _with_tokenizer(sizes: ModelConfig, side: int) -> tuple[ModelConfig, Processor]:
    """The sizes with the special tokens of a small tokenizer, and the processor that reads texts by it."""
    assert sizes.encoder is not None
    assert sizes.sana is not None
    with tempfile.TemporaryDirectory() as folder:
        train_tokenizer([SENTENCE], min(sizes.encoder.text.vocab_size, 1024), Path(folder) / "tokenizer")
        chat = ChatTokenizer.from_pretrained(Path(folder) / "tokenizer")
    sizes = ModelInit(sizes, {}).with_tokenizer(chat).model_config
    assert sizes.encoder is not None
    assert sizes.sana is not None
    return sizes, Processor(
        chat, resolution=side, condition_length=sizes.sana.condition_length, layout=sizes.encoder.vision.layout
    )  # fmt: skip


def main(work: Row) -> None:
    with processes.distributed():
        for row in {"equal": equal, "paint": paint, "train": train}[work["kind"]](work):
            if processes.is_first():
                print(json.dumps(work | row), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
