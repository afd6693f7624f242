"""Batches of a packed corpus, addressed by step.

Row i of the endless training stream is a function of (seed, i) alone: the batch of step k is rows
k * batch_size to (k + 1) * batch_size on any number of hosts, and resuming is a seek.
"""

import functools
import itertools
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor

import grain
import jax
import numpy as np
from jax.sharding import Sharding

from pathways_lm.config import DataConfig
from pathways_lm.data.cache import TRAIN, VALIDATION, Corpus
from pathways_lm.data.objectives import Objective
from pathways_lm.data.vocabulary import PAD_ID
from pathways_lm.models.batch import Batch

_READ_AHEAD = 2
# Noise of validation rows is drawn from numbers that no training row has.
_VALIDATION = 1 << 62


class Loader:
    """The training and validation batches of a corpus, as an objective makes them of its sequences.

    Each task is shuffled anew every epoch, in which each of its sequences comes once; tasks take turns in
    proportion to the corpus's rates.
    """

    def __init__(self, corpus: Corpus, config: DataConfig, objective: Objective):
        self.batch_size = config.batch_size
        self._objective = objective
        self.sequence_length = corpus.sequence_length
        self._rates = corpus.rates
        self._validation = [self._source(corpus, task, VALIDATION) for task in corpus.rates]
        streams = [
            grain.MapDataset.source(self._source(corpus, task, TRAIN)).seed(config.seed).shuffle().repeat()
            for task in corpus.rates
        ]
        self._stream = grain.MapDataset.mix(streams, list(corpus.rates.values()))

    @staticmethod
    def _source(corpus: Corpus, task: str, split: str) -> grain.sources.ArrayRecordDataSource:
        return grain.sources.ArrayRecordDataSource(corpus.files(task, split))

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop` of the training stream: int32 [stop - start, L]."""
        rows = np.empty((stop - start, self.sequence_length), np.int32)
        for place, index in enumerate(range(start, stop)):
            rows[place] = _sequence(self._stream[index])
        return rows

    @functools.cached_property
    def example(self) -> Batch:
        """A batch of padding: what any batch of this loader looks like."""
        return self._examples(np.full((self.batch_size, self.sequence_length), PAD_ID, np.int32), 0)

    def batch(self, step: int, sharding: Sharding) -> Batch:
        """The batch of a step, over all devices. Each process reads its own rows only."""

        @functools.cache  # devices along the tensor axis, and the parts of a batch, come from the same rows
        def examples(start: int, stop: int) -> Batch:
            first = step * self.batch_size + start
            return self._examples(self.rows(first, step * self.batch_size + stop), first)

        def place(name: str, like: np.ndarray) -> jax.Array:
            def shard(index: tuple[slice, ...] | None) -> np.ndarray:
                assert index is not None  # None is for scalars
                start, stop, _ = index[0].indices(self.batch_size)
                return getattr(examples(start, stop), name)[:, index[1]]

            return jax.make_array_from_callback(like.shape, sharding, shard)

        leaves = self.example._asdict().items()
        return Batch(**{name: place(name, like) for name, like in leaves if like is not None})

    def _examples(self, rows: np.ndarray, first: int) -> Batch:
        return self._objective(rows, range(first, first + len(rows)))

    def batches(self, first_step: int, sharding: Sharding) -> Generator[Batch, None, None]:
        """The batches from `first_step` on, endlessly, read ahead in a thread that ends with the generator.

        What fails while reading is raised here. Close the generator when done: `with contextlib.closing(...)`.
        """
        with ThreadPoolExecutor(1, thread_name_prefix="loader") as reader:
            steps = itertools.count(first_step)
            ahead = deque(reader.submit(self.batch, next(steps), sharding) for _ in range(_READ_AHEAD))
            try:
                while True:
                    ahead.append(reader.submit(self.batch, next(steps), sharding))
                    yield ahead.popleft().result()
            finally:
                reader.shutdown(cancel_futures=True)

    def validation(self, batch_size: int) -> Iterator[Batch]:
        """The validation batches in order; rows of padding fill up the last one."""
        rows = [_sequence(record) for source in self._validation for record in source]
        for start in range(0, len(rows), batch_size):
            batch = np.full((batch_size, self.sequence_length), PAD_ID, np.int32)
            batch[: len(rows) - start] = rows[start : start + batch_size]
            yield self._examples(batch, _VALIDATION + start)


def _sequence(record: bytes) -> np.ndarray:
    return np.frombuffer(record, "<i4")
