"""Writing a cache: a plan of shards, those of them that are not there yet, and the manifest at the end.

While it is written, a journal in the folder says which shards are finished. A shard is taken over from it, or from a
manifest, when its file still has the SHA-256 noted there.
"""

import contextlib
import dataclasses
import fcntl
import gzip
import hashlib
import json
import logging
import lzma
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

from pathways_lm.data import sources
from pathways_lm.data.examples import TRAIN, VALIDATION, Example
from pathways_lm.data.manifest import (
    JOURNAL,
    MANIFEST,
    VOCABULARY,
    Manifest,
    Shard,
    all_shards,
    as_shard,
    clear_begun,
    damage,
    difference,
    read_manifest,
    shard_name,
    write_whole,
)
from pathways_lm.data.shards import Advance, Job, Report, Row, deal, text_bytes, write_shard
from pathways_lm.data.vocabulary import Vocabulary
from pathways_lm.data.workers import write_in_processes
from pathways_lm.errors import DataError

_log = logging.getLogger(__name__)

_FORMAT = 2
"""To be raised whenever the same documents would be packed to other sequences or files."""

_YARDSTICK_CHARACTERS = 8_000_000

Tasks = Mapping[str, Mapping[str, Sequence[Example]]]
"""Task -> split -> documents or pairs."""


@dataclass(frozen=True)
class Plan:
    """A cache to be written. `fingerprint` and `asked` are the manifest's."""

    fingerprint: str
    asked: Mapping[str, Any]
    row: Row
    vocabulary: Vocabulary
    tasks: Tasks
    jobs: tuple[Job, ...]


def make_plan(tasks: Tasks, vocabulary: Vocabulary, row: Row, asked: Mapping[str, Any]) -> Plan:
    """Deals the documents to shards, by their order and sizes alone."""
    base = hashlib.sha256(json.dumps([_FORMAT, vocabulary.fingerprint, *row]).encode())
    jobs = []
    for task, splits in tasks.items():
        for split, documents in splits.items():
            runs = deal(documents)
            for number, run in enumerate(runs):
                file = shard_name(task, split, number, len(runs))
                jobs.append(Job(task, split, file, _made_from(base.copy(), file, run), run))
    whole = base.copy()
    whole.update(json.dumps([(job.file, job.made_from) for job in jobs]).encode())
    return Plan(whole.hexdigest()[:32], asked, row, vocabulary, tasks, tuple(jobs))


def _made_from(digest: Any, file: str, documents: Sequence[Example]) -> str:
    digest.update(file.encode())
    for document in documents:
        texts = [text.encode() for text in document.texts]
        digest.update(json.dumps([document.name, document.part, *map(len, texts)]).encode())
        for text in texts:
            digest.update(text)
    made_from: str = digest.hexdigest()
    return made_from


def write_cache(folder: Path, plan: Plan, workers: int, report: Report) -> Manifest:
    """Writes what is missing of a cache, or mends what is damaged, and returns its manifest.

    Args:
      folder: made where it is not there. Another process that writes to it is waited for.
      plan: what to write.
      workers: processes that write shards; with 0, this one does.
      report: called with what was done, now and then; finished shards that are kept count.

    Raises:
      DataError: the folder holds another cache, finished or not; or a worker was killed.
      OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        old = read_manifest(folder)
        if old is not None:
            _refuse_another(folder, plan, old.asked, old.fingerprint)
        clear_begun(folder)
        with _Journal(folder, plan) as journal:
            noted = {**({shard.file: shard for shard in all_shards(old)} if old else {}), **journal.shards}
            kept = _kept(folder, plan, noted, report)
            missing = [job for job in plan.jobs if job.file not in kept]
            write_whole(folder / VOCABULARY, plan.vocabulary.model)
            if workers:
                write_in_processes(folder, missing, plan.vocabulary, plan.row, workers, report, journal.add)
            else:
                with _interruptible():
                    _write_here(folder, missing, plan, report, journal)
            manifest = _manifest(plan, {**kept, **journal.shards})
            write_whole(folder / MANIFEST, (json.dumps(dataclasses.asdict(manifest), indent=1) + "\n").encode())
        (folder / JOURNAL).unlink()
    return manifest


def _write_here(folder: Path, jobs: Sequence[Job], plan: Plan, report: Report, journal: "_Journal") -> None:
    for job in jobs:
        megabytes = sum(map(text_bytes, job.documents)) / 1e6
        _log.info("tokenizing %s: %d documents, %.1f MB", job.file, len(job.documents), megabytes)
        journal.add(write_shard(folder, job, plan.vocabulary, plan.row, report))


def _kept(folder: Path, plan: Plan, noted: Mapping[str, Shard], report: Report) -> dict[str, Shard]:
    """The finished shards of the plan, by file. They are read whole, to be sure."""
    kept = {}
    for job in plan.jobs:
        shard = noted.get(job.file)
        if shard and shard.made_from == job.made_from and not damage(folder, shard):
            kept[job.file] = shard
            report(Advance(shard.counts.documents, shard.counts.bytes, 0))
    return kept


def _manifest(plan: Plan, written: Mapping[str, Shard]) -> Manifest:
    shards: dict[str, dict[str, tuple[Shard, ...]]] = {task: {} for task in plan.tasks}
    for job in plan.jobs:
        earlier = shards[job.task].get(job.split, ())
        shards[job.task][job.split] = (*earlier, written[job.file])
    return Manifest(
        fingerprint=plan.fingerprint,
        asked=plan.asked,
        sequence_length=plan.row.length,
        vocabulary_sha256=plan.vocabulary.fingerprint,
        versions={name: version(name) for name in ("pathways-lm", "seqio", "sentencepiece", "array-record")},
        rates=sources.sampling_rates({task: splits[TRAIN] for task, splits in plan.tasks.items()}),
        yardsticks=yardsticks(plan.tasks),
        shards=shards,
    )


def yardsticks(tasks: Tasks) -> dict[str, float]:
    """Bits per byte of two compressors on the validation text (8 MB of it at most): what a model has to beat."""
    parts, room = [], _YARDSTICK_CHARACTERS
    for document in (document for splits in tasks.values() for document in splits[VALIDATION]):
        parts.append(document.text[:room])
        room -= len(parts[-1])
        if not room:
            break
    text = "".join(parts).encode()
    compressed = {"gzip -9": gzip.compress(text, 9), "xz -9": lzma.compress(text, preset=9)}
    return {name: 8 * len(data) / len(text) for name, data in compressed.items()}


class _Journal:
    """Finished shards, a JSON line each, behind a line that says which cache they belong to."""

    def __init__(self, folder: Path, plan: Plan):
        """Raises DataError where the folder's journal is another cache's."""
        self._path = folder / JOURNAL
        self.shards: dict[str, Shard] = {}
        lines = self._lines()
        if lines:
            _refuse_another(folder, plan, lines[0]["asked"], lines[0]["fingerprint"])
            self.shards = {shard.file: shard for shard in map(as_shard, lines[1:])}
        head = {"fingerprint": plan.fingerprint, "asked": dict(plan.asked)}
        lines = [head, *map(dataclasses.asdict, self.shards.values())]
        write_whole(self._path, "".join(json.dumps(line) + "\n" for line in lines).encode())

    def _lines(self) -> list[dict[str, Any]]:
        """The lines before the first that cannot be read: a kill may have cut the last one."""
        lines = []
        with contextlib.suppress(FileNotFoundError, ValueError), self._path.open() as file:
            for line in file:
                lines.append(json.loads(line))
        return lines

    def __enter__(self) -> "_Journal":
        self._file = self._path.open("a")
        return self

    def add(self, shard: Shard) -> None:
        self.shards[shard.file] = shard
        self._file.write(json.dumps(dataclasses.asdict(shard)) + "\n")
        self._file.flush()

    def __exit__(self, *unused: object) -> None:
        self._file.close()


def _refuse_another(folder: Path, plan: Plan, asked: Mapping[str, Any], fingerprint: str) -> None:
    if fingerprint != plan.fingerprint:
        other = difference(asked, plan.asked)
        what = f"was written for {other}" if other else "was written from other documents"
        raise DataError(f"the cache in '{folder}' {what}; use another folder, or remove it")


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Keeps the folder for this process, until it ends in whatever way."""
    with (folder / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            _log.info("waiting for %s, which writes '%s'", file.read().strip() or "another process", folder)
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        yield


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C ends the block, at the latest at its end: some of what tensorflow imports catches every exception."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupted = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if interrupted:
        raise KeyboardInterrupt
