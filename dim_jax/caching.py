"""`dim cache`: the outputs of the frozen parts for every row, computed once, so that training runs without those parts.

    dim cache --config configs/edit_stage2.py --into caches/edit_stage2
    dim train --config configs/edit_stage2.py --workdir runs/edit_stage2 --set data.cache=caches/edit_stage2

Finished shards are kept, so the same call resumes after a kill. Each of several processes writes its own shards, on its own devices.
dim_jax/data/cache.py describes the folder, docs/cache.md the cost.
"""

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import deepcopy
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Num
from rich.console import Console
from rich.progress import track

from dim_jax import processes
from dim_jax.config import Config
from dim_jax.console import open_console
from dim_jax.data import cache
from dim_jax.data.batches import PictureBatch
from dim_jax.data.cache import HiddenDtype, ShardLayout, bad_record, quantize, row_records, write_shard
from dim_jax.data.chunks import Chunk, ChunkLoader, LoadedChunk, shard_chunks
from dim_jax.data.pipeline import MixtureComponent, batches, evenly_spaced, make_plan
from dim_jax.data.plan import Component
from dim_jax.data.readers import PaintReader, buckets
from dim_jax.errors import InputError, check
from dim_jax.models.connector import select_user_turn
from dim_jax.models.module import with_parameters
from dim_jax.models.precision import compute_dtype
from dim_jax.processes import make_global_array
from dim_jax.processing.inputs import EncoderInputs
from dim_jax.processing.pictures import normalize_pixels
from dim_jax.sharding import Sharding
from dim_jax.storage.disk import check_space, format_bytes
from dim_jax.storage.paths import AnyPath
from dim_jax.training.config_guard import check_cacheable, check_config
from dim_jax.training.exporting import make_tokenizer
from dim_jax.training.fingerprint import fingerprint, write_fingerprint
from dim_jax.training.model_init import ModelInit, open_data
from dim_jax.training.objectives import CACHED, Objective, open_objective
from dim_jax.training.state import abstract_params
from dim_jax.weights.model_config import ModelConfig

SAMPLED_ROWS = 1000  # rows of each component whose texts are counted for the estimate
SHARD_BYTES = 2**32  # bytes
RECORD_OVERHEAD = 400  # bytes of a record around its arrays, as measured


def main(
    config: Config,
    folder: AnyPath,
    *,
    hidden_dtype: HiddenDtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    console: Console | None = None,
) -> None:
    """Write the cache of a run, or the shards that it lacks.

    Args:
        config: of the run; `data.batch_size` rows are computed at once.
        folder: of the cache. `data.cache` is ignored.
        hidden_dtype: of hidden states; None: the dtype that they are computed in. Latents are float32.
        shard_bytes: about the size of a file. A kill loses the unfinished one.
        console: shows the progress; None: stderr, of the first process alone. Rows that cannot be used are printed to stderr by the
            process that loads them.

    Raises:
        InputError: the run cannot be cached; the cache in `folder` is of another run; there is too little space; more than
            `data.bad_samples` rows cannot be used; or the config is wrong.
    """
    console = console or open_console(quiet=not processes.is_first())
    config = deepcopy(config)
    config.data.cache = ""
    check_cacheable(config)
    model_init = ModelInit.open(config, check_config(config))
    sharding = Sharding.open(config, model_init.model_config, jax.local_devices())
    data, size = config.data, config.data.batch_size
    hidden_dtype = hidden_dtype or cast(HiddenDtype, compute_dtype(config.model.dtype).name)
    mixture = open_data(config, "train")
    folder.mkdir(parents=True, exist_ok=True)
    has_shards = any(True for _ in folder.glob("*/*.array_record"))  # else a call that was refused left what is there
    processes.barrier("the files of the cache")
    tokenizer = make_tokenizer(config, model_init, mixture, folder, has_state=has_shards)
    processes.barrier("the tokenizer")
    objective = open_objective(config, model_init, tokenizer)
    reader, sizes = objective.reader, objective.model_config
    plan = make_plan(
        mixture, reader, objective.processor.tokenizer, batch_size=size, seed=config.seed, max_bad_rows=data.bad_samples, console=console,
    )  # fmt: skip
    folders = cache.component_folders(folder, [member.name for member in mixture])
    row_bytes = [
        row_nbytes(member, component, reader, sizes, hidden_dtype) for member, component in zip(mixture, plan.components, strict=True)
    ]
    if processes.is_first():
        write_fingerprint(folder, fingerprint(model_init, objective), hidden_dtype, has_shards=has_shards)
        for member, part_folder, nbytes in zip(mixture, folders, row_bytes, strict=True):
            if not has_shards or cache.read_shard_layout(part_folder, len(member.source)) is None:
                cache.create_shard_layout(part_folder, member.name, len(member.source), max(1, shard_bytes // nbytes))
    processes.barrier("the layout of the cache")

    # The missing shards, and the space for them.
    work, needed = list[tuple[ShardLayout, int, list[Chunk]]](), list[int]()
    for number, (member, component, part_folder, nbytes) in enumerate(zip(mixture, plan.components, folders, row_bytes, strict=True)):
        layout = cache.read_shard_layout(part_folder, len(member.source))
        assert layout is not None
        missing = layout.missing()
        missing_bytes = [nbytes * len(layout.shard_range(shard)) for shard in missing]
        needed += missing_bytes
        own_shards = [shard for shard in missing if shard % jax.process_count() == jax.process_index()]
        work += [(layout, shard, shard_chunks(number, component, layout, shard, size)) for shard in own_shards]
        console.out(
            f"{member.name}: {layout.rows:,} rows, about {format_bytes(nbytes)} each: {format_bytes(nbytes * layout.rows)} in "
            f"{layout.shards} shards; {len(missing)} shards ({format_bytes(sum(missing_bytes))}) are missing",
            highlight=False,
        )  # fmt: skip
    processes.barrier("the missing shards of the cache")  # before anybody writes any of it
    _check_space(folder, needed)

    loader = ChunkLoader(mixture, [chunk for *_, chunks in work for chunk in chunks], reader, size, skip_bad_rows=data.bad_samples > 0)
    stream = _limit_bad_rows(data.bad_samples, batches(loader, start=0, stop=len(loader.chunks), workers=data.workers))
    tracked = track(stream, "caching", len(loader.chunks), console=console, disable=not console.is_terminal)
    computed = _prefetch(map(_make_encode_fn(config, objective, model_init, sharding), tracked)) if work else iter(())
    for layout, shard, chunks in work:
        write_shard(layout, shard, _records(islice(computed, len(chunks)), hidden_dtype))
    processes.barrier("the end of the cache")
    console.out(f"wrote {folder}", highlight=False)


def _check_space(folder: AnyPath, shards: list[int]) -> None:
    """Refuse shards of these sizes in bytes if there is no space. Those of a bucket are written on this machine first, one at a time."""
    if isinstance(folder, Path):
        disk, needed = folder, sum(shards)
        what, other = f"the missing shards of {folder}", "another folder (--into)"
    else:
        disk, needed = Path(tempfile.gettempdir()), max(shards, default=0)
        what, other = f"a shard of {folder}, put together on this machine", "another folder (TMPDIR) or smaller shards (--shard-size)"
    remedy = f"Free some space, choose {other}, store less (--dtype int8) or make the pictures smaller (data.resolution)."
    check_space(disk, needed, purpose=what, remedy=remedy)


def row_nbytes(member: MixtureComponent, component: Component, reader: PaintReader, sizes: ModelConfig, hidden_dtype: HiddenDtype) -> int:
    """Mean bytes of a row, estimated from sampled rows and the tokens of their prompts."""
    encoder, autoencoder = sizes.encoder, sizes.autoencoder
    assert encoder is not None
    assert autoencoder is not None
    edit, total = member.kind == "edit", 0
    sampled = evenly_spaced(len(component.rows), SAMPLED_ROWS)
    for index in sampled:
        bucket = buckets(reader)[component.buckets[index]]
        area = bucket.height * bucket.width // autoencoder.factor**2
        total += 4 * area * autoencoder.latent_channels * (1 + edit) + RECORD_OVERHEAD
        tokens = []
        with suppress(InputError):  # a row that cannot be used is reported when it is loaded
            tokens = reader.condition_tokens(member.source.row_texts(int(component.rows[index])), edit=edit)
        total += sum(cache.hidden_states_nbytes(count, encoder.text.hidden_size, hidden_dtype) + RECORD_OVERHEAD for count in tokens)
    return math.ceil(total / len(sampled))


class _EncodedChunk(NamedTuple):
    """The outputs of the frozen parts for a chunk, on the devices; their computation may still run."""

    chunk: LoadedChunk
    target: Any
    source: Any
    states: list[Any]  # of each turn of `chunk.turns`


def _make_encode_fn(
    config: Config, objective: Objective, model_init: ModelInit, sharding: Sharding
) -> Callable[[LoadedChunk], _EncodedChunk]:
    """A function from a chunk to the outputs of encoder and autoencoder, on the mesh."""
    model: Any = objective.model
    dtype = compute_dtype(config.model.dtype)  # as in a training step
    params = model_init.init_params(config.seed, abstract_params(objective.model_config, sharding, CACHED, dtype))
    weights = {
        part: {path.removeprefix(f"{part}."): tensor for path, tensor in params.items() if path.startswith(f"{part}.")} for part in CACHED
    }

    def _latents(weights: dict[str, Any], batch: PictureBatch) -> Any:
        with jax.sharding.use_abstract_mesh(sharding.mesh.abstract_mesh):
            return with_parameters(model.autoencoder, weights).encode(normalize_pixels(batch.pixels))

    def _states(weights: dict[str, Any], inputs: EncoderInputs) -> Any:
        with jax.sharding.use_abstract_mesh(sharding.mesh.abstract_mesh):
            length = min(inputs.input_ids.shape[1], config.model.condition_length)
            return select_user_turn(with_parameters(model.encoder, weights)(inputs), jnp.asarray(inputs.user_turn), length)[0]

    encode_pictures, encode_text = jax.jit(_latents), jax.jit(_states)

    def compute(chunk: LoadedChunk) -> _EncodedChunk:
        target, source = (
            None if pixels is None else encode_pictures(weights["autoencoder"], sharding.shard(PictureBatch(pixels), make_global_array))
            for pixels in (chunk.target, chunk.source)
        )
        return _EncodedChunk(
            chunk, target, source, [encode_text(weights["encoder"], sharding.shard(turn, make_global_array)) for turn in chunk.turns]
        )

    return compute


def _limit_bad_rows(budget: int, stream: Iterator[LoadedChunk]) -> Iterator[LoadedChunk]:
    """The same chunks. Prints their bad rows; more than `budget` of them in this process is an error."""
    count, console = 0, open_console()
    for chunk in stream:
        for bad in chunk.bad:
            count += 1
            check(count <= budget, f"{count} rows cannot be used, but data.bad_samples allows {budget}. The last: {bad.error}")
            console.out(f"{bad.source}, row {bad.row}: {bad.error}", highlight=False)
        yield chunk


def _prefetch(items: Iterator[_EncodedChunk]) -> Iterator[_EncodedChunk]:
    """The same items, each yielded after the next one is started, so that devices compute while files are written."""
    previous = None
    for item in items:
        if previous is not None:
            yield previous
        previous = item
    if previous is not None:
        yield previous


def _records(results: Iterator[_EncodedChunk], hidden_dtype: HiddenDtype) -> Iterator[tuple[int, list[bytes]]]:
    """Number and records of each row."""
    for result in results:
        for bad in result.chunk.bad:
            yield bad.row - 1, [bad_record(bad.error)]
        target, source = (None if latents is None else np.asarray(latents) for latents in (result.target, result.source))
        turns = _turns(result)
        for index, row in enumerate(result.chunk.rows):
            assert target is not None
            prompts = {text: quantize(next(turns), hidden_dtype) for text in row.prompts}
            yield row.number, row_records(row.key, prompts, target[index], None if source is None else source[index])


def _turns(result: _EncodedChunk) -> Iterator[Num[np.ndarray, "t d"]]:
    """The hidden states of each turn, without padding."""
    for inputs, states in zip(result.chunk.turns, result.states, strict=True):
        for hidden, tokens in zip(np.asarray(states), inputs.user_turn.sum(1).tolist(), strict=True):
            yield hidden[:tokens]
