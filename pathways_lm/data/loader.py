"""Batches of a packed corpus, addressed by step.

Row i of the endless training stream is a function of the seed, i and the shares in force there alone, and the rows of a
step of the ramp: the batch of a step is the same on any number of hosts, and resuming is a seek.
"""

import functools
from collections.abc import Iterator, Sequence

import grain
import jax
import numpy as np
from jax.sharding import Sharding

from pathways_lm.config import DataConfig
from pathways_lm.data.cache import TRAIN, VALIDATION, Corpus
from pathways_lm.data.mixing import Mixture
from pathways_lm.data.objectives import Objective
from pathways_lm.data.ramp import Ramp, make_ramp
from pathways_lm.data.vocabulary import PAD_ID
from pathways_lm.models.batch import Batch

# Noise of validation rows is drawn from numbers that no training row has.
_VALIDATION = 1 << 62


class Loader:
    """The training and validation batches of a corpus, as an objective makes them of its sequences.

    Each task is shuffled anew every epoch, in which each of its sequences comes once; whose turn it is, the mixture
    tells, and which rows a step reads, the ramp. Both may change while a run goes on, for what has not been read.
    """

    def __init__(
        self,
        corpus: Corpus,
        config: DataConfig,
        objective: Objective,
        mixture: Mixture | None = None,
        ramp: Ramp | None = None,
    ):
        self.mixture = mixture or Mixture.start(corpus.rates)
        self.ramp = ramp or make_ramp(config)
        self.sequence_length = corpus.sequence_length
        self._objective = objective
        self._validation = [_source(corpus, task, VALIDATION) for task in self.mixture.tasks]
        self._train = [_source(corpus, task, TRAIN) for task in self.mixture.tasks]
        # Numbers of sequences, and not what is read: passing those through costs more than reading them.
        self._order = [
            grain.MapDataset.range(len(source)).seed(config.seed).shuffle().repeat() for source in self._train
        ]

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop` of the training stream: int32 [stop - start, L]."""
        return self._read([self.mixture.at(number) for number in range(start, stop)])

    @functools.cache  # noqa: B019 - of the few sizes that a run has
    def example(self, batch_size: int) -> Batch:
        """A batch of padding: what any batch of that size looks like."""
        rows = np.full((batch_size, self.sequence_length), PAD_ID, np.int32)
        return self._examples(rows, 0, [0] * batch_size)

    def batch(self, step: int, sharding: Sharding) -> Batch:
        """The batch of a step, over all devices. Each process reads its own rows only."""
        batch_size, first = self.ramp.batch_size(step), self.ramp.first_row(step)

        @functools.cache  # devices along the tensor axis, and the parts of a batch, come from the same rows
        def examples(start: int, stop: int) -> Batch:
            return self.examples(range(first + start, first + stop))

        def place(name: str, like: np.ndarray) -> jax.Array:
            def shard(index: tuple[slice, ...] | None) -> np.ndarray:
                assert index is not None  # None is for scalars
                start, stop, _ = index[0].indices(batch_size)
                return getattr(examples(start, stop), name)[:, index[1]]

            return jax.make_array_from_callback(like.shape, sharding, shard)

        leaves = self.example(batch_size)._asdict().items()
        return Batch(**{name: place(name, like) for name, like in leaves if like is not None})

    def examples(self, numbers: range) -> Batch:
        """Some rows of the training stream, as numpy arrays."""
        places = [self.mixture.at(number) for number in numbers]
        return self._examples(self._read(places), numbers.start, [task for task, _ in places])

    def _read(self, places: Sequence[tuple[int, int]]) -> np.ndarray:
        """The sequences at (task, number over epochs): int32 [places, L]."""
        records = (self._train[task][self._order[task][number]] for task, number in places)
        # One array of all records: an array of each costs as much as reading it.
        return _sequence(bytearray().join(records)).reshape(len(places), self.sequence_length)

    def _examples(self, rows: np.ndarray, first: int, tasks: Sequence[int]) -> Batch:
        batch = self._objective(rows, range(first, first + len(rows)))
        if len(self.mixture.tasks) == 1:
            return batch
        return batch._replace(tasks=np.eye(len(self.mixture.tasks), dtype=np.float32)[np.asarray(tasks, int)])

    def validation(self, batch_size: int) -> Iterator[Batch]:
        """The validation batches in order; rows of padding fill up the last one."""
        rows = [(task, _sequence(record)) for task, source in enumerate(self._validation) for record in source]
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            batch = np.full((batch_size, self.sequence_length), PAD_ID, np.int32)
            batch[: len(part)] = [sequence for _, sequence in part]
            tasks = [task for task, _ in part] + [0] * (batch_size - len(part))
            yield self._examples(batch, _VALIDATION + start, tasks)


def read_rows(corpus: Corpus, task: str, split: str) -> Iterator[np.ndarray]:
    """A split's packed rows in order, int32 [L] each."""
    return (_sequence(record) for record in _source(corpus, task, split))


def _source(corpus: Corpus, task: str, split: str) -> grain.sources.ArrayRecordDataSource:
    return grain.sources.ArrayRecordDataSource(corpus.files(task, split))


def _sequence(record: bytes | bytearray) -> np.ndarray:
    return np.frombuffer(record, "<i4")
