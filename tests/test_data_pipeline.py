"""Batches: an order that follows from seed and number alone, whoever loads; rare rules seen more often; one reader for each objective."""

from collections import Counter
from pathlib import Path

import jax
import jaxtyping
import numpy as np
import pytest

from dim_jax.data.batches import AnswerReader, PaintReader, PictureReader
from dim_jax.data.chat import IM_END
from dim_jax.data.pipeline import Repeated, balanced, batches, moved, open_mixture
from dim_jax.data.processor import Processor
from dim_jax.data.synthetic import Synthetic
from dim_jax.errors import InputError
from dim_jax.models.qwen import QwenConfig

TOKENIZER = Path(__file__).parent / "tiny_tokenizer"
LENGTHS = (160, 320)


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor.from_pretrained(TOKENIZER, resolution=32, condition_length=256, layout=QwenConfig.tiny().vision.layout)


def first(count: int, reader, sources, **changes) -> list:
    options = {"batch_size": 3, "seed": 1, "start": 0, "workers": 0} | changes
    stream = batches(sources, reader, **options)
    return [next(stream).batch for _ in range(count)]


def same(one, other) -> bool:
    leaves = [jax.tree.leaves(batch) for batch in (one, other)]
    return len(leaves[0]) == len(leaves[1]) and all(np.array_equal(*pair) for pair in zip(*leaves, strict=True))


@pytest.fixture(scope="module")
def mixture():
    return open_mixture("synthetic", {"edit": 0.5, "caption": 0.5}, split="train", side=32)


def test_the_order_follows_from_seed_and_number(processor, mixture):
    reader = PaintReader(processor, LENGTHS, 32, "instruction")
    whole = first(6, reader, mixture)
    assert all(same(*pair) for pair in zip(whole, first(6, reader, mixture), strict=True))
    assert all(same(*pair) for pair in zip(whole[4:], first(2, reader, mixture, start=4), strict=True))
    assert not same(whole[0], first(1, reader, mixture, seed=2)[0])
    assert Counter(batch.source is None for batch in whole) == {True: 3, False: 3}  # a batch is of one kind


@pytest.fixture
def _unchecked():
    """Grain takes batches apart and puts placeholders in, which are no arrays."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("_unchecked")
def test_worker_processes_load_the_same(mixture):
    streams = [batches(mixture, PictureReader(32), batch_size=3, seed=1, start=0, workers=workers) for workers in (0, 2)]
    for _ in range(4):
        one, other = (next(stream) for stream in streams)
        assert one.keys == other.keys
        assert same(one.batch, other.batch)


def test_a_batch_names_its_examples():
    source = Synthetic("caption", 32)
    found = next(batches([(source, 1.0)], PictureReader(32), batch_size=3, seed=1, start=5, workers=0))
    assert len(jax.tree.leaves(found.batch)) == 1  # the names are not among the arrays
    for key, pixels in zip(found.keys, found.batch.samples, strict=True):
        target = np.asarray(source[int(key.removeprefix("synthetic/"))].target)
        assert any(np.array_equal(pixels, one) for one in (target, target[:, ::-1]))  # as it is, or mirrored


def test_a_round_has_every_example_once():
    source = Synthetic("caption", 8)
    batch = first(1, PictureReader(8), [(source, 1.0)], batch_size=len(source))[0]
    assert len(np.unique(batch.samples.reshape(len(source), -1), axis=0)) == len(source)


def test_what_the_painter_reads(processor):
    source = Synthetic("edit", 32)
    for text, wanted in (("instruction", source[0].texts), ("blueprint", (source[0].blueprint,))):
        sample = PaintReader(processor, LENGTHS, 32, text).choose(source[0], np.random.default_rng(0))
        assert sample.prompt in wanted
        assert sample.seen == source[0].source
    batch = PaintReader(processor, LENGTHS, 32, "blueprint").collate([sample] * 2)
    assert batch.target.shape == batch.source.shape == (2, 32, 32, 3)
    np.testing.assert_array_equal(batch.source[0], np.asarray(source[0].source))
    np.testing.assert_array_equal(batch.target[1], np.asarray(source[0].target))


def test_the_answers_are_what_a_writer_is_to_predict(processor):
    reader = AnswerReader(processor, LENGTHS)
    samples = [reader.choose(Synthetic(kind, 32)[3], np.random.default_rng(0)) for kind in ("edit", "caption")]
    batch = reader.collate(samples)
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


def test_rare_rules_are_seen_more_often():
    source = Ruled("edit", 8)
    assert balanced(source, 0.0) is source
    for balance, times in ((0.5, 3), (1.0, 9)):
        more = balanced(source, balance)
        assert isinstance(more, Repeated)
        assert Counter(more.places.tolist()) == {**dict.fromkeys(range(9), 1), 9: times}
        assert more[len(more) - 1].key == source[9].key


def test_the_pictures_of_an_example_move_together():
    example = Synthetic("edit", 16)[0]
    ways = set()
    for seed in range(40):
        other = moved(example, np.random.default_rng(seed), most=1)
        padded = [np.pad(np.asarray(one), ((1, 1), (1, 1), (0, 0)), constant_values=255) for one in (example.source, example.target)]
        fits = {
            (right, down)
            for right in (-1, 0, 1)
            for down in (-1, 0, 1)
            if all(
                np.array_equal(np.asarray(got), large[1 - down : 17 - down, 1 - right : 17 - right])
                for got, large in zip((other.source, other.target), padded, strict=True)
            )
        }
        assert len(fits) == 1
        ways |= fits
    assert len(ways) == 9


def test_batches_of_moved_pictures():
    still, moving, again = (first(2, PictureReader(16), [(Synthetic("caption", 16), 1.0)], shift=shift) for shift in (0, 3, 3))
    assert all(same(*pair) for pair in zip(moving, again, strict=True))
    assert not same(still[0], moving[0])


def test_mixtures_that_cannot_be():
    for mix, says in (({"edit": 0.0}, "positive weight"), ({"edits": 1.0}, '"edits"')):
        with pytest.raises(InputError, match=says):
            open_mixture("synthetic", mix, split="train", side=8)
