"""A shard: a run of one task's documents, tokenized and packed by itself into one ArrayRecord file.

Its bytes are a function of its documents, the vocabulary and the length of a row alone, so that shards can be written
in any order by any number of processes.
"""

import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from pathways_lm.data.examples import TRAIN, VALIDATION, Example, Pair
from pathways_lm.data.manifest import Counts, Shard, begun_name, sha256
from pathways_lm.data.packing import pack, pack_pairs
from pathways_lm.data.vocabulary import Vocabulary

# So much text to a shard: seconds of work, of which a kill loses no more than each worker's. A task of terabytes has
# the most shards, and larger ones.
_SHARD_BYTES, _MOST_SHARDS = 2_000_000, 1024
_REPORT_SECONDS = 0.1


class Advance(NamedTuple):
    """What was done since the last report."""

    documents: int
    bytes: int
    tokens: int


Report = Callable[[Advance], None]

Tokens = TypeVar("Tokens", bound=tuple[np.ndarray, ...])


class Row(NamedTuple):
    """What a record holds: so many tokens, of which the first are for an encoder's inputs where it holds pairs."""

    length: int
    inputs_length: int


@dataclass(frozen=True)
class Job:
    """A shard to be written. `made_from` is `Shard.made_from`."""

    task: str
    split: str
    file: str
    made_from: str
    documents: Sequence[Example]


def text_bytes(document: Example) -> int:
    return len(document.text.encode())


def deal(documents: Sequence[Example]) -> list[Sequence[Example]]:
    """Contiguous runs of about equally many bytes, in order, none of them empty."""
    sizes = [text_bytes(document) for document in documents]
    count = min(-(-sum(sizes) // _SHARD_BYTES) or 1, _MOST_SHARDS)
    # A document belongs to the run that its middle byte falls into.
    middles = np.cumsum(sizes) - np.array(sizes) / 2
    places = np.minimum(middles * count // max(sum(sizes), 1), count - 1)
    starts = [0, *(np.flatnonzero(np.diff(places)) + 1).tolist(), len(documents)]
    return [documents[start:stop] for start, stop in itertools.pairwise(starts)]


def write_shard(folder: Path, job: Job, vocabulary: Vocabulary, row: Row, report: Report) -> Shard:
    """Tokenizes, packs and writes a shard, under a name of its own until it is whole. Raises OSError."""
    begun = begun_name(folder)
    sizes = [text_bytes(document) for document in job.documents]
    try:
        counted = _Counted(sizes, report)
        sequences = write_rows(begun, _packed(job, vocabulary, row, counted))
        with begun.open("rb") as file:
            os.fsync(file.fileno())
        counts = Counts(len(sizes), sum(sizes), counted.tokens, sequences)
        shard = Shard(job.file, job.made_from, sha256(begun), begun.stat().st_size, counts)
        begun.replace(folder / job.file)
    finally:
        begun.unlink(missing_ok=True)
    return shard


def _packed(job: Job, vocabulary: Vocabulary, row: Row, counted: "_Counted") -> Iterator[np.ndarray]:
    # Late, as tensorflow comes with it: a cache that is ready needs none.
    from pathways_lm.data.tasks import pair_tokens, register, tokens

    # What a split is called makes no difference to how its documents are tokenized.
    register({job.task: {TRAIN: job.documents}}, vocabulary)
    if isinstance(job.documents[0], Pair):
        return pack_pairs(counted.pairs(pair_tokens(job.task, TRAIN)), *row)
    return pack(counted.documents(tokens(job.task, TRAIN)), row.length, keep_tail=job.split == VALIDATION)


class _Counted:
    """Counts documents or pairs as they come, and reports from time to time. `sizes` are their bytes."""

    def __init__(self, sizes: Sequence[int], report: Report):
        self._sizes, self._report = sizes, report
        self._reported, self._since = Advance(0, 0, 0), time.monotonic()
        self.tokens = 0

    def documents(self, documents: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for (tokens,) in self.pairs((document,) for document in documents):
            yield tokens

    def pairs(self, examples: Iterable[Tokens]) -> Iterator[Tokens]:
        done = self._reported
        for example, size in zip(examples, self._sizes, strict=True):
            self.tokens += sum(map(len, example))
            yield example
            done = Advance(done.documents + 1, done.bytes + size, self.tokens)
            if time.monotonic() - self._since > _REPORT_SECONDS:
                self._tell(done)
        self._tell(done)

    def _tell(self, done: Advance) -> None:
        self._report(Advance(*(now - before for now, before in zip(done, self._reported, strict=True))))
        self._reported, self._since = done, time.monotonic()


def write_rows(path: Path, rows: Iterable[np.ndarray]) -> int:
    """Writes rows as records and returns how many. Raises OSError where the disk is full."""
    written = 0
    try:
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for row in rows:
            writer.write(row.astype("<i4").tobytes())
            written += 1
        writer.close()
    except RuntimeError as error:  # how ArrayRecord tells what the file system refused
        raise OSError(str(error).split(";")[0]) from error
    return written
