"""Batches: an order that follows from seed and number alone, whoever loads; rare rules seen more often; one reader for each objective."""

import itertools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import jax
import jaxtyping
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dim_jax.config import read_config
from dim_jax.data.cache import HiddenStates
from dim_jax.data.pipeline import BadSamples, Loader, MixtureComponent, batches, make_plan, open_mixture
from dim_jax.data.readers import (
    CONDITION_STEP,
    AnswerReader,
    Augment,
    CachedReader,
    CachedSample,
    PaintReader,
    PictureReader,
    Reader,
    buckets,
)
from dim_jax.data.synthetic import Synthetic
from dim_jax.errors import InputError
from dim_jax.models.qwen import QwenConfig
from dim_jax.processing.buckets import Bucket
from dim_jax.processing.chat import IM_END
from dim_jax.processing.processor import Processor
from dim_jax.training.model_init import open_data
from tests.test_chat import QWEN, needs_qwen

TOKENIZER = Path(__file__).parent / "tiny_tokenizer"
LENGTHS = (320,)
SQUARE = ((32, 32),)


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor.from_pretrained(TOKENIZER, resolution=32, condition_length=256, layout=QwenConfig.tiny().vision.layout)


def loader(reader: Reader, parts: list[MixtureComponent], *, batch_size: int = 3, seed: int = 1, places=None, **options) -> Loader:
    tokenizer = None if isinstance(reader, PictureReader) else reader.processor.tokenizer
    plan = make_plan(parts, reader, tokenizer, batch_size=batch_size, seed=seed)
    return Loader(parts, plan, reader, np.arange(batch_size) if places is None else np.array(places), **options)


def first(count: int, reader: Reader, parts: list[MixtureComponent], *, start: int = 0, workers: int = 0, **options) -> list:
    stream = batches(loader(reader, parts, **options), start=start, workers=workers)
    return [next(stream).batch for _ in range(count)]


def alone(source) -> list[MixtureComponent]:
    return [MixtureComponent(f"{source.kind}:here", source.kind, source, {0: 1.0})]


def same(one, other) -> bool:
    leaves = [jax.tree.leaves(batch) for batch in (one, other)]
    return len(leaves[0]) == len(leaves[1]) and all(np.array_equal(*pair) for pair in zip(*leaves, strict=True))


@pytest.fixture(scope="module")
def mixture():
    return open_mixture("synthetic", {"edit": 0.5, "caption": 0.5}, split="train", side=32)


def test_the_order_follows_from_seed_and_number(processor, mixture):
    reader = PaintReader(processor, LENGTHS, SQUARE, "instruction")
    whole = first(6, reader, mixture)
    assert all(same(*pair) for pair in zip(whole, first(6, reader, mixture), strict=True))
    assert all(same(*pair) for pair in zip(whole[4:], first(2, reader, mixture, start=4), strict=True))
    assert not same(whole[0], first(1, reader, mixture, seed=2)[0])
    assert Counter(batch.source is None for batch in whole) == {True: 3, False: 3}  # a batch is of one kind


@pytest.fixture
def _unchecked():
    """Grain takes batches apart and puts placeholders in, which are not arrays."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("_unchecked")
def test_worker_processes_load_the_same(processor, mixture):
    reader = PaintReader(processor, LENGTHS, SQUARE, "instruction")
    streams = [batches(loader(reader, mixture), start=0, workers=workers) for workers in (0, 2)]
    for _ in range(4):
        one, other = (next(stream) for stream in streams)
        assert one.keys == other.keys
        assert same(one.batch, other.batch)
        assert one.batch.condition_length == other.batch.condition_length


def test_a_batch_names_its_examples():
    source = Synthetic("caption", 32)
    found = next(batches(loader(PictureReader(SQUARE), alone(source)), start=5, workers=0))
    assert len(jax.tree.leaves(found.batch)) == 1  # the names are not among the arrays
    for key, pixels in zip(found.keys, found.batch.pixels, strict=True):
        target = np.asarray(source[int(key.removeprefix("synthetic/"))].target)
        assert any(np.array_equal(pixels, one) for one in (target, target[:, ::-1]))  # as it is, or mirrored


def test_epoch_has_every_example_once():
    source = Synthetic("caption", 8)
    batch = first(1, PictureReader(((8, 8),)), alone(source), batch_size=len(source))[0]
    assert len(np.unique(batch.pixels.reshape(len(source), -1), axis=0)) == len(source)


def test_batch_contents_for_painter_training(processor):
    source = Synthetic("edit", 32)
    for text, wanted in (("instruction", source[0].texts), ("blueprint", (source[0].blueprint,))):
        sample = PaintReader(processor, LENGTHS, SQUARE, text).make_sample(source[0], np.random.default_rng(0))
        assert sample.prompt in wanted
        assert sample.pictures == (source[0].source,)
    batch = PaintReader(processor, LENGTHS, SQUARE, "blueprint").collate([sample] * 2, Bucket(32, 32, 320))
    assert batch.target.shape == batch.source.shape == (2, 32, 32, 3)
    np.testing.assert_array_equal(batch.source[0], np.asarray(source[0].source))
    np.testing.assert_array_equal(batch.target[1], np.asarray(source[0].target))


def test_writer_targets_are_the_blueprint_tokens(processor):
    reader = AnswerReader(processor, LENGTHS)
    samples = [reader.make_sample(Synthetic(kind, 32)[3], np.random.default_rng(0)) for kind in ("edit", "caption")]
    batch = reader.collate(samples, Bucket(0, 0, 320))
    tokenizer = processor.tokenizer
    for row, sample in enumerate(samples):
        tokens = batch.inputs.input_ids[row][batch.answer[row]].tolist()
        assert tokens.pop() == tokenizer.ids[IM_END]
        assert tokenizer.decode(tokens) == sample.answer
        assert not (batch.answer[row] & batch.inputs.user_turn[row]).any()
    assert samples[0].answer == Synthetic("edit", 32)[3].blueprint
    assert samples[1].answer in Synthetic("caption", 32)[3].texts


class Ruled(Synthetic):
    """Nine examples of one rule and one of another."""

    def __len__(self) -> int:
        return 10

    def rules(self) -> list[str]:
        return ["common"] * 9 + ["rare"]


@pytest.mark.parametrize(("balance", "times"), [(0.0, 1), (0.5, 3), (1.0, 9)])
def test_balance_oversamples_rare_rules(balance, times):
    parts = alone(Ruled("edit", 8))
    plan = make_plan(parts, PictureReader(((8, 8),)), None, batch_size=1, seed=0, balance=balance)
    seen = Counter(int(plan.batch_at(step).rows[0]) for step in range(9 + times))
    assert seen == {**dict.fromkeys(range(9), 1), 9: times}


def test_a_batch_has_the_shape_that_the_plan_names(processor, mixture):
    """Lengths are bounds that were counted before: every row of a batch fits, and rows of both lengths come."""
    reader = PaintReader(processor, (60, 130, 160), SQUARE, "blueprint")
    loading = loader(reader, mixture, batch_size=4)
    found = Counter()
    for step in range(40):
        inputs, planned = loading(step).batch.inputs, loading.plan.batch_at(step)
        assert inputs.input_ids.shape[1] == buckets(reader)[planned.bucket].tokens
        found[planned.component, inputs.input_ids.shape[1]] += 1
    assert len(found) > 2, found


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.text(max_size=40), st.integers(0, 2), st.integers(0, 64))
def test_a_condition_holds_the_user_turn_and_not_the_template(processor, prompt, pictures, padding):
    """Of any turn, in a bucket with so much padding."""
    assume(pictures or prompt.strip())
    turn = processor.tokenizer.turn(prompt, [4] * pictures)
    begin, end = turn.user_turn
    bucket, tokens = len(turn.ids) + padding, end - begin + padding
    length = PaintReader(processor, (bucket,), SQUARE, "instruction").condition_length(Bucket(32, 32, bucket))
    assert tokens <= length == min(-(-tokens // CONDITION_STEP) * CONDITION_STEP, bucket)


def test_batches_have_conditions_as_long_online_and_from_a_cache(processor):
    reader, bucket = PaintReader(processor, (96,), SQUARE, "instruction"), Bucket(32, 32, 96)
    batch = reader.collate([reader.make_sample(Synthetic("edit", 32)[0], np.random.default_rng(0))], bucket)
    states = HiddenStates(np.ones((batch.inputs.user_turn.sum(), 8), np.float32), None)
    cached = CachedReader(reader).collate([CachedSample("", states, np.zeros((4, 4, 8), np.float32), None)], bucket)
    assert batch.condition_length == cached.hidden.shape[1] == 64  # the template of this tokenizer has 36 tokens
    assert replace(reader, processor=replace(processor, condition_length=50)).condition_length(bucket) == 50


@needs_qwen
@pytest.mark.parametrize("name", ["t2i", "edit_stage2"])
def test_buckets_that_suit_the_kernel_stay_with_the_published_vocabulary(name):
    reader = PaintReader(Processor.from_pretrained(QWEN), tuple(read_config(Path(name), {}).data.lengths), SQUARE, "blueprint")
    assert [reader.condition_length(bucket) for bucket in buckets(reader)] == sorted(reader.lengths)


def test_texts_that_are_longer_than_every_bucket(processor, mixture):
    with pytest.raises(
        InputError, match=r"caption:synthetic: 1,024 of 1,024 rows have more tokens than the longest bucket 50, such as row 1 "
    ):
        loader(PaintReader(processor, (40, 50), SQUARE, "blueprint"), mixture)


def test_a_process_loads_its_own_rows(processor, mixture):
    """What two processes load are the rows of the whole batch, pictures named by their numbers in it."""
    reader = PaintReader(processor, LENGTHS, SQUARE, "instruction")
    whole = loader(reader, mixture, batch_size=6)
    for step in range(2):  # an edit and a caption
        batch = whole(step).batch
        for places in ([0, 1, 4], [2, 3, 5]):
            mine = loader(reader, mixture, batch_size=6, places=places)(step).batch
            np.testing.assert_array_equal(mine.inputs.picture_tokens, batch.inputs.picture_tokens[places])
            np.testing.assert_array_equal(mine.inputs.input_ids, batch.inputs.input_ids[places])
            np.testing.assert_array_equal(mine.target, batch.target[places])
            if batch.source is None:
                assert mine.source is None
            else:
                np.testing.assert_array_equal(mine.inputs.patches, batch.inputs.patches[places])


class Broken(Synthetic):
    """Every third row cannot be used."""

    def __getitem__(self, index: int):
        if index % 3 == 0:
            raise InputError(f"rows.jsonl, line {index + 1}: is broken.")
        return super().__getitem__(index)


def test_bad_sample_without_budget_raises(tmp_path):
    with pytest.raises(InputError, match=r"rows.jsonl, line \d+: is broken"):
        for _ in batches(loader(PictureReader(SQUARE), alone(Broken("caption", 32))), start=0, workers=0):
            pass


def test_bad_samples_within_a_budget(tmp_path):
    """Another row stands in, the same for whoever loads; each is listed once, also by a run that goes on; one too many stops the run."""
    parts, path = alone(Broken("caption", 32)), tmp_path / "bad_samples.jsonl"
    loading = loader(PictureReader(SQUARE), parts, batch_size=6, replace_bad_samples=True)
    halves = [
        loader(PictureReader(SQUARE), parts, batch_size=6, places=places, replace_bad_samples=True) for places in ([0, 2, 4], [1, 3, 5])
    ]
    for step in range(5):
        whole, parted = loading(step), [half(step) for half in halves]
        assert [whole.keys[place] for place in (0, 2, 4, 1, 3, 5)] == [key for part in parted for key in part.keys]
        assert sorted(whole.bad) == sorted(bad for part in parted for bad in part.bad)
    total = {(bad.source, bad.row) for step in range(5) for bad in loading(step).bad}
    for _ in range(2):
        bad_samples = BadSamples(path, len(total))
        for _ in itertools.islice(bad_samples.watch(batches(loading, start=0, workers=0)), 5):
            pass
        bad_samples.flush()
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert {(line["source"], line["row"]) for line in lines} == total
        assert len(lines) == len(total) > 5
    assert all(f"line {line['row']}: is broken" in line["error"] for line in lines)
    fresh = (loaded for loaded in batches(loading, start=5, workers=0) if {(bad.source, bad.row) for bad in loaded.bad} - total)
    next(bad_samples.watch(fresh))
    with pytest.raises(InputError, match=rf"data\.bad_samples allows {len(total)}. The last: rows\.jsonl, line"):
        bad_samples.flush()


class Unsized(Broken):
    """Every third row shows so when it is counted."""

    def size(self, index: int) -> tuple[int, int]:
        self[index]
        return 32, 16 if index % 2 else 32


def test_bad_samples_that_are_met_while_rows_are_counted():
    """Within the budget they are planned, so that loading lists them."""
    reader, parts = PictureReader(((32, 32), (16, 32))), alone(Unsized("caption", 32))
    with pytest.raises(InputError, match=r"rows\.jsonl, line 1: is broken"):
        make_plan(parts, reader, None, batch_size=2, seed=0)
    with pytest.raises(InputError, match=r"More than 300 rows cannot be used. The first: rows\.jsonl, line 1"):
        make_plan(parts, reader, None, batch_size=2, seed=0, max_bad_rows=300)
    plan = make_plan(parts, reader, None, batch_size=2, seed=0, max_bad_rows=400)
    assert len(plan.components[0].rows) == 1024
    loading = Loader(parts, plan, reader, np.arange(2), replace_bad_samples=True)
    loaded = [loading(step) for step in range(30)]
    assert {one.batch.pixels.shape for one in loaded} == {(2, 32, 32, 3), (2, 16, 32, 3)}
    assert any(one.bad for one in loaded)


def test_source_without_usable_rows_is_refused():
    class Nothing(Synthetic):
        def __getitem__(self, index: int):
            raise InputError("line 1: is broken.")

    part = MixtureComponent("caption:nothing", "caption", Nothing("caption", 32), {0: 1.0})
    with pytest.raises(InputError, match=r"100 rows one after the other cannot be used\. The last: line 1: is broken"):
        loader(PictureReader(SQUARE), [part], replace_bad_samples=True)(0)


def test_batches_of_changed_pictures():
    changes = (None, Augment(shift=3), Augment(shift=3))
    still, moving, again = (first(2, PictureReader(((16, 16),)), alone(Synthetic("caption", 16)), augment=change) for change in changes)
    assert all(same(*pair) for pair in zip(moving, again, strict=True))
    assert not same(still[0], moving[0])


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[1] / "configs").glob("[!_]*.py")), ids=lambda path: path.stem)
def test_synthetic_data_take_the_place_of_every_source(path, tmp_path, monkeypatch):
    """So that any config runs on a bare machine, mixtures too."""
    monkeypatch.chdir(tmp_path)
    config = read_config(path, {"data.source": "synthetic"})
    for split in ("train", "test"):
        parts = open_data(config, split)
        assert len(parts) == sum(weight > 0 for weight in config.data.mix.values())
        assert all(len(part.source) and isinstance(part.source, Synthetic) for part in parts)


def test_invalid_mixtures_are_refused():
    for mix, says in (({"edit": 0.0}, "positive weight"), ({"edits": 1.0}, '"edits"')):
        with pytest.raises(InputError, match=says):
            open_mixture("synthetic", mix, split="train", side=8)


@pytest.mark.parametrize(
    ("curriculum", "says"),
    [
        ((9, {"edit": 1.0}), r"data\.curriculum has 9: write"),
        (((9.5, {"edit": 1.0}),), "write"),
        (((9, {"edit": 1.0}), (9, {"caption": 1.0})), "has step 9 after step 9: steps must increase"),
        (((0, {"edit": 1.0}),), "has step 0 after step 0"),
        (((9, {"edit:elsewhere": 1.0}),), "step 9: edit:elsewhere: data.mix has caption, edit"),
        (((9, {"edit": 0.0}),), r"step 9, is {'edit': 0\.0}: give at least one part"),
        (((9, {"edit": 1.0, "caption": -1.0}),), "none a negative one"),
        (((9, {}),), "step 9, is {}"),
    ],
)
def test_invalid_curricula_are_refused(curriculum, says):
    with pytest.raises(InputError, match=says):
        open_mixture("synthetic", {"edit": 1.0, "caption": 0.0}, curriculum=curriculum, split="train", side=8)


def test_curriculum_component_starts_at_its_step():
    """As config files have it, and as JSON gives it back."""
    for curriculum in (((2, {"caption": 1.0}),), [[2, {"caption": 1}]]):
        parts = open_mixture("synthetic", {"edit": 1.0, "caption": 0.0}, curriculum=curriculum, split="train", side=32)
        assert [(part.name, part.weights) for part in parts] == [
            ("caption:synthetic", {0: 0.0, 2: 1.0}), ("edit:synthetic", {0: 1.0, 2: 0.0}),
        ]  # fmt: skip
        plan = make_plan(parts, PictureReader(SQUARE), None, batch_size=2, seed=0)
        assert [plan.batch_at(step).component for step in range(4)] == [1, 1, 0, 0]
