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
from typing import NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from pathways_lm.data.manifest import VALIDATION, Counts, Shard, begun_name, sha256
from pathways_lm.data.packing import pack
from pathways_lm.data.sources import Document
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


@dataclass(frozen=True)
class Job:
    """A shard to be written. `made_from` is `Shard.made_from`."""

    task: str
    split: str
    file: str
    made_from: str
    documents: Sequence[Document]


def text_bytes(document: Document) -> int:
    return len(document.text.encode())


def deal(documents: Sequence[Document]) -> list[Sequence[Document]]:
    """Contiguous runs of about equally many bytes, in order, none of them empty."""
    sizes = [text_bytes(document) for document in documents]
    count = min(-(-sum(sizes) // _SHARD_BYTES) or 1, _MOST_SHARDS)
    # A document belongs to the run that its middle byte falls into.
    middles = np.cumsum(sizes) - np.array(sizes) / 2
    places = np.minimum(middles * count // max(sum(sizes), 1), count - 1)
    starts = [0, *(np.flatnonzero(np.diff(places)) + 1).tolist(), len(documents)]
    return [documents[start:stop] for start, stop in itertools.pairwise(starts)]


def write_shard(folder: Path, job: Job, vocabulary: Vocabulary, length: int, report: Report) -> Shard:
    """Tokenizes, packs and writes a shard, under a name of its own until it is whole. Raises OSError."""
    begun = begun_name(folder)
    sizes = [text_bytes(document) for document in job.documents]
    try:
        counted = _Counted(_tokens(job, vocabulary), sizes, report)
        sequences = write_rows(begun, pack(counted, length, keep_tail=job.split == VALIDATION))
        with begun.open("rb") as file:
            os.fsync(file.fileno())
        counts = Counts(len(sizes), sum(sizes), counted.tokens, sequences)
        shard = Shard(job.file, job.made_from, sha256(begun), begun.stat().st_size, counts)
        begun.replace(folder / job.file)
    finally:
        begun.unlink(missing_ok=True)
    return shard


def _tokens(job: Job, vocabulary: Vocabulary) -> Iterator[np.ndarray]:
    # Late, as tensorflow comes with it: a cache that is ready needs none.
    from pathways_lm.data.tasks import register, tokens

    # What a split is called makes no difference to how its documents are tokenized.
    register({job.task: {"train": job.documents}}, vocabulary)
    return tokens(job.task, "train")


class _Counted:
    """Documents as they come, counted and reported from time to time."""

    def __init__(self, documents: Iterable[np.ndarray], sizes: Sequence[int], report: Report):
        self._documents, self._sizes, self._report = documents, sizes, report
        self.tokens = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        since, reported = time.monotonic(), Advance(0, 0, 0)
        done = reported
        for tokens, size in zip(self._documents, self._sizes, strict=True):
            self.tokens += len(tokens)
            yield tokens
            done = Advance(done.documents + 1, done.bytes + size, self.tokens)
            if time.monotonic() - since > _REPORT_SECONDS:
                self._report(Advance(*np.subtract(done, reported).tolist()))
                since, reported = time.monotonic(), done
        self._report(Advance(*np.subtract(done, reported).tolist()))


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
