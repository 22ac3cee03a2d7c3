"""What the speed of both frameworks is measured on: sizes, and random inputs of the right shape (random, never zeros)."""

import json
import statistics
import time
from argparse import Namespace
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from dim_jax.models.dc_ae_config import DCAEConfig
from dim_jax.models.dim import DimConfig
from dim_jax.models.qwen import QwenConfig
from dim_jax.models.sana_config import SanaConfig
from dim_jax.processing.inputs import EncoderInputs, encoder_inputs

BEFORE_USER, TEXT_TOKENS = 14, 330  # of a turn; of a blueprint
LENGTHS = (80, 160, 320, 512, 768, 1024, 1600, 1792, 2048, 2560, 4096, 8192)  # buckets
STEPS, GUIDANCE = 30, 7.5
IN_A_ROW = 4  # training steps that are timed together, since a run does not wait for each
LEARNING_RATE, WEIGHT_DECAY, CLIP, EMA = 2e-5, 0.01, 1.0, 0.9999
GIB = 2**30


def dim_config(size: str) -> DimConfig:
    """ "full": the published sizes; "nano": the bundled model's; "tiny": whether a script works, not how fast."""
    if size == "full":
        return DimConfig.dim_4_6b(edit=True)
    if size == "nano":
        return DimConfig(QwenConfig.nano(), SanaConfig.nano(edit=True), DCAEConfig.nano())
    return DimConfig(QwenConfig.tiny(), SanaConfig(16, 8, 64, 2, 2, 16, 24, 512), DCAEConfig.tiny())


class Turns(NamedTuple):
    """Chat turns of one square picture each: token ids (b, t), which are the user's (b, t), and patches (b, p, c) on a square grid."""

    ids: np.ndarray
    user: np.ndarray
    patches: np.ndarray
    grid: int


def turns(config: DimConfig, side: int, batch: int, text_tokens: int = TEXT_TOKENS) -> Turns:
    """Turns that are random in all but their shape."""
    layout, rng = config.encoder.vision.layout, np.random.default_rng(0)
    units = max(1, round(side / layout.patch_size / layout.merge_size))
    tokens = BEFORE_USER + units**2 + 2 + text_tokens + 2
    ids = rng.integers(0, min(config.encoder.text.vocab_size, config.encoder.image_token_id) - 10, (batch, tokens))
    ids[:, BEFORE_USER + 1 : BEFORE_USER + 1 + units**2] = config.encoder.image_token_id
    user = np.zeros(ids.shape, bool)
    user[:, BEFORE_USER:-2] = True
    grid = units * layout.merge_size
    patches = rng.normal(size=(batch, grid**2, 3 * layout.temporal_patch_size * layout.patch_size**2)).astype(np.float32)
    return Turns(ids, user, patches, grid)


def pad_turns(config: DimConfig, turns: Turns) -> EncoderInputs:
    """Turns as our encoder reads them, padded to a bucket of tokens."""
    batch, tokens = turns.ids.shape
    room = ((0, 0), (0, next(length for length in LENGTHS if length >= tokens) - tokens))
    mask = np.pad(np.ones(turns.ids.shape, bool), room)
    return encoder_inputs(
        np.pad(turns.ids, room), mask, np.pad(turns.user, room), list(turns.patches), [(turns.grid, turns.grid)] * batch,
        image_token_id=config.encoder.image_token_id, layout=config.encoder.vision.layout,
    )  # fmt: skip


def measure(run: Callable[[], Any], wait: Callable[[Any], Any], repeats: int, *, in_a_row: int = 1) -> tuple[list[float], Any]:
    """Milliseconds of a run, `repeats` times after two more, each the mean of `in_a_row` runs that are started one after the other, until
    `wait` on the last one's result returns; and the last result."""
    times, result = [], None
    for _ in range(repeats + 2):
        start = time.perf_counter()
        for _ in range(in_a_row):
            result = run()
        wait(result)
        times.append(1000 * (time.perf_counter() - start) / in_a_row)
    return times[2:], result


def report(args: Namespace, framework: str, part: str, times: list[float], **numbers: Any) -> None:
    """One line of JSON: the median and the spread of some times, and whatever else is known."""
    spread = {"ms": round(statistics.median(times), 2), "least": round(min(times), 2), "most": round(max(times), 2)}
    where = {"size": args.size, "side": args.side, "batch": args.batch}
    print(json.dumps({"framework": framework, "work": args.work, "part": part, **where, **spread, **numbers}), flush=True)
