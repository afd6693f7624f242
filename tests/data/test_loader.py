from collections import Counter

import grain
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pathways_lm.config import DataConfig
from pathways_lm.data.loader import Loader
from pathways_lm.models.batch import Batch

LENGTH = 16


def as_they_are(rows, numbers) -> Batch:
    """An objective that shows the rows, and their numbers in the encoder's place."""
    return Batch(tokens=rows, targets=rows, encoder_tokens=np.tile(np.array(numbers, np.int64)[:, None], (1, LENGTH)))


def config(seed: int = 0) -> DataConfig:
    return DataConfig(sequence_length=LENGTH, batch_size=8, seed=seed)


@pytest.fixture(scope="module")
def loader(known_corpus):
    return Loader(known_corpus, config(), as_they_are)


def values(rows: np.ndarray) -> list[int]:
    """What each row is filled with: which row of which task it is."""
    assert rows.dtype == np.int32
    assert rows.shape[1] == LENGTH
    assert (rows == rows[:, :1]).all()
    return rows[:, 0].tolist()


def devices_2d(data: int) -> Mesh:
    devices = np.array(jax.devices())
    return Mesh(devices.reshape(data, -1), ("data", "tensor"))


@settings(max_examples=20)
@given(st.integers(0, 10**9), st.integers(0, 20))
def test_a_row_depends_on_seed_and_index_alone(known_corpus, loader, start, count):
    alone = [values(loader.rows(i, i + 1))[0] for i in reversed(range(start, start + count))]
    assert values(loader.rows(start, start + count)) == alone[::-1]
    assert values(Loader(known_corpus, config(), as_they_are).rows(start, start + count)) == alone[::-1]


def test_seeds_differ(known_corpus):
    streams = [values(Loader(known_corpus, config(seed), as_they_are).rows(0, 40)) for seed in (0, 1, 2**40)]
    assert streams[0] != streams[1] != streams[2] != streams[0]


@pytest.mark.parametrize(("task", "first"), [("big", 1000), ("small", 2000)])
def test_each_epoch_is_another_permutation(known_corpus, loader, task, first):
    rows = known_corpus.counts[task]["train"].sequences
    stream = values(loader.rows(0, 5 * known_corpus.train_sequences))
    drawn = [value for value in stream if first <= value < first + 500]
    epochs = [drawn[start : start + rows] for start in range(0, len(drawn), rows)]
    assert len(epochs) == 5
    for epoch in epochs:
        assert sorted(epoch) == list(range(first, first + rows))
    assert len({tuple(epoch) for epoch in epochs}) == 5
    assert epochs[0] != sorted(epochs[0])


def test_tasks_take_turns_by_their_rates(loader):
    drawn = Counter()
    for row, value in enumerate(values(loader.rows(0, 1_000)), start=1):
        drawn["big" if value < 2000 else "small"] += 1
        assert abs(drawn["big"] - 0.75 * row) <= 1


def test_a_far_step_reads_no_more_than_its_rows(loader, monkeypatch):
    read = []
    get = grain.sources.ArrayRecordDataSource.__getitem__
    monkeypatch.setattr(
        grain.sources.ArrayRecordDataSource, "__getitem__", lambda self, i: read.append(i) or get(self, i)
    )
    sharding = NamedSharding(devices_2d(data=1), PartitionSpec("data", None))  # all devices hold all rows
    np.testing.assert_array_equal(loader.batch(10**6, sharding).tokens, loader.rows(8 * 10**6, 8 * 10**6 + 8))
    assert len(read) == 8 + 8


@pytest.mark.parametrize(
    "spec", [PartitionSpec(), PartitionSpec("data", None), PartitionSpec(("data", "tensor"), None)]
)
def test_batch_lies_on_the_mesh(loader, spec):
    devices = len(jax.devices())
    sharding = NamedSharding(devices_2d(data=max(devices // 2, 1)), spec)
    batch = loader.batch(3, sharding).tokens
    assert batch.shape == (8, LENGTH)
    assert batch.dtype == np.int32
    assert batch.sharding == sharding
    expected = loader.rows(24, 32)
    np.testing.assert_array_equal(batch, expected)
    for shard in batch.addressable_shards:
        np.testing.assert_array_equal(shard.data, expected[shard.index])


@given(st.integers(1, 12))
def test_validation_gives_every_sequence_once(loader, batch_size):
    batches = list(loader.validation(batch_size))
    expected = [1500, 1501, 1502, 1503, 1504, 2500, 2501]
    assert all(batch.tokens.shape == (batch_size, LENGTH) for batch in batches)
    rows = [value for batch in batches for value in values(batch.tokens)]
    assert rows == expected + [0] * (-len(expected) % batch_size)


def test_rows_tell_their_tasks(loader):
    """Where there are several."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    batch = loader.batch(5, sharding)
    big = np.asarray(batch.tokens)[:, 0] < 2000
    np.testing.assert_array_equal(batch.tasks, np.stack([big, ~big], axis=1).astype(np.float32))


def test_validation_rows_tell_their_tasks(loader):
    for batch in loader.validation(4):
        told = np.argmax(batch.tasks, axis=1)
        filled = batch.tokens[:, 0] != 0
        np.testing.assert_array_equal(told[filled], batch.tokens[filled, 0] // 1000 - 1)
