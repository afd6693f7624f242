"""The corpus on disk, ready to be read by index: tokenized and packed once, kept under a hash of its content.

<cache_dir>/vocabulary/<hash>.model         SentencePiece models
<cache_dir>/packed/<fingerprint>/           one corpus
    corpus.json                             what `Corpus` holds
    <task>-<split>.array_record             a sequence a record: little-endian int32 [sequence_length]
"""

import contextlib
import gzip
import hashlib
import json
import logging
import lzma
import os
import shutil
import signal
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from pathways_lm.config import DataConfig
from pathways_lm.data import sources
from pathways_lm.data.examples import TRAIN as TRAIN
from pathways_lm.data.examples import VALIDATION as VALIDATION
from pathways_lm.data.examples import Example, Pair
from pathways_lm.data.objectives import inputs_length, raw_length
from pathways_lm.data.packing import pack, pack_pairs
from pathways_lm.data.vocabulary import Vocabulary, load_vocabulary, train_vocabulary, training_key
from pathways_lm.errors import DataError

_log = logging.getLogger(__name__)

_FORMAT = 1
"""To be raised whenever the same documents would be packed to other sequences or files."""

Tasks = Mapping[str, Mapping[str, list[Example]]]
"""Task -> split -> documents or pairs."""


@dataclass(frozen=True)
class Counts:
    """The size of one split of one task. `tokens` includes each document's end-of-document token."""

    documents: int
    bytes: int
    tokens: int
    sequences: int


@dataclass(frozen=True)
class Corpus:
    """A packed corpus.

    `fingerprint` changes with everything that decides a batch but seed and batch size: documents, vocabulary,
    sequence length, mixture.
    """

    fingerprint: str
    folder: Path
    vocabulary: Vocabulary
    sequence_length: int
    counts: Mapping[str, Mapping[str, Counts]]
    """Task -> split -> counts."""
    rates: Mapping[str, float]
    """Task -> its share of the training sequences; they add up to 1."""
    yardsticks: Mapping[str, float]
    """Compressor -> bits per byte on the validation text."""

    @property
    def train_sequences(self) -> int:
        return sum(splits[TRAIN].sequences for splits in self.counts.values())

    @property
    def validation_bytes(self) -> int:
        """UTF-8 bytes of the text that the validation tokens stand for."""
        return sum(splits[VALIDATION].bytes for splits in self.counts.values())

    def shard(self, task: str, split: str) -> Path:
        return self.folder / _shard_name(task, split)


def prepare(config: DataConfig, vocab_size: int) -> Corpus:
    """The packed corpus that `config` asks for, from the cache or built now.

    Its sequences have as many tokens as the objective makes one example of. The vocabulary leaves room for
    `data.extra_ids` in the model's `vocab_size` rows.

    Building takes some 20 s for the text that comes with Python; reading the cache about one, without
    tensorflow. Several processes may do it at once. Raises ConfigError for an unknown mixture, DataError for
    files, a vocabulary or a cache folder that cannot be used, and for a corpus smaller than one batch.
    """
    cache = Path(config.cache_dir).expanduser()
    tasks = sources.read(config)
    length, of_inputs = raw_length(config), inputs_length(config)
    vocabulary = _vocabulary(config, vocab_size - config.extra_ids, tasks, cache)
    fingerprint = _fingerprint(tasks, vocabulary, length, of_inputs)
    folder = cache / "packed" / fingerprint
    corpus = _load(folder, vocabulary)
    if corpus is None:
        with _writable(cache):
            corpus = _build(folder, tasks, vocabulary, length, of_inputs)
    _check_size(corpus, config)
    return corpus


def _vocabulary(config: DataConfig, vocab_size: int, tasks: Tasks, cache: Path) -> Vocabulary:
    if config.vocabulary:
        return load_vocabulary(os.path.expanduser(config.vocabulary), vocab_size)
    texts = [text for splits in tasks.values() for example in splits[TRAIN] for text in example.texts]
    path = cache / "vocabulary" / f"{training_key(texts, vocab_size)}.model"
    # A damaged file is not an error here: the same model can be learned again.
    with contextlib.suppress(OSError, ValueError):
        return Vocabulary(path.read_bytes())
    _log.info("learning a vocabulary of %d pieces", vocab_size)
    model = train_vocabulary(texts, vocab_size)
    with _writable(cache):
        path.parent.mkdir(parents=True, exist_ok=True)
        begun = _begun(path)
        try:
            begun.write_bytes(model)
            begun.replace(path)
        finally:
            begun.unlink(missing_ok=True)
    return Vocabulary(model)


def _begun(path: Path) -> Path:
    """A name beside `path` that no other builder uses, to be written and then renamed to `path`."""
    return path.with_name(f".begun-{uuid.uuid4().hex}")


def _fingerprint(tasks: Tasks, vocabulary: Vocabulary, sequence_length: int, of_inputs: int) -> str:
    rows = [sequence_length, of_inputs] if of_inputs else [sequence_length]
    digest = hashlib.sha256(json.dumps([_FORMAT, vocabulary.fingerprint, *rows]).encode())
    for task, splits in tasks.items():
        for split, examples in splits.items():
            for example in examples:
                texts = [text.encode() for text in example.texts]
                digest.update(json.dumps([task, split, example.name, example.part, *map(len, texts)]).encode())
                digest.update(b"".join(texts))
    return digest.hexdigest()[:32]


def _load(folder: Path, vocabulary: Vocabulary) -> Corpus | None:
    """The corpus in `folder`; None where there is none, or not all of it."""
    try:
        values = json.loads((folder / "corpus.json").read_text())
        counts = {
            task: {split: Counts(**numbers) for split, numbers in splits.items()}
            for task, splits in values["counts"].items()
        }
        corpus = Corpus(
            fingerprint=folder.name,
            folder=folder,
            vocabulary=vocabulary,
            sequence_length=values["sequence_length"],
            counts=counts,
            rates=values["rates"],
            yardsticks=values["yardsticks"],
        )
        whole = all((folder / name).stat().st_size == size for name, size in values["file_bytes"].items())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return corpus if whole else None


def _build(folder: Path, tasks: Tasks, vocabulary: Vocabulary, sequence_length: int, of_inputs: int) -> Corpus:
    """Writes the corpus beside `folder` and renames it there, so that no half of one is ever seen."""
    begun = _begun(folder)
    try:
        begun.mkdir(parents=True)
        with _interruptible():
            values = {
                "sequence_length": sequence_length,
                "counts": _write_shards(begun, tasks, vocabulary, sequence_length, of_inputs),
                "rates": sources.sampling_rates({task: splits[TRAIN] for task, splits in tasks.items()}),
                "yardsticks": _yardsticks(tasks),
                "file_bytes": {path.name: path.stat().st_size for path in sorted(begun.iterdir())},
            }
        (begun / "corpus.json").write_text(json.dumps(values, indent=1))
        if _load(folder, vocabulary) is None:
            shutil.rmtree(folder, ignore_errors=True)  # damaged
            with contextlib.suppress(OSError):  # another process was quicker, with the same content
                begun.rename(folder)
    finally:
        shutil.rmtree(begun, ignore_errors=True)
    corpus = _load(folder, vocabulary)
    if corpus is None:
        raise OSError(f"{folder} was damaged while it was written")
    return corpus


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


def _write_shards(
    folder: Path, tasks: Tasks, vocabulary: Vocabulary, length: int, of_inputs: int
) -> dict[str, dict[str, Any]]:
    """Tokenizes, packs and writes every split. Returns `Counts` as plain values, task -> split -> counts."""
    # Late, as tensorflow comes with it: a corpus that is ready needs none.
    from pathways_lm.data.tasks import pair_tokens, register, tokens

    register(tasks, vocabulary)
    counts: dict[str, dict[str, Any]] = {task: {} for task in tasks}
    for task, splits in tasks.items():
        for split, documents in splits.items():
            text_bytes = _text_bytes(documents)
            _log.info("tokenizing %s, %s: %d documents, %.1f MB", task, split, len(documents), text_bytes / 1e6)
            lengths: list[int] = []
            rows: Iterable[np.ndarray]
            if isinstance(documents[0], Pair):
                rows = pack_pairs(_measured_pairs(pair_tokens(task, split), lengths), length, of_inputs)
            else:
                rows = pack(_measured(tokens(task, split), lengths), length, keep_tail=split == VALIDATION)
            path = folder / _shard_name(task, split)
            sequences = _write(path, rows)
            counts[task][split] = asdict(Counts(len(documents), text_bytes, sum(lengths), sequences))
    return counts


def _measured(documents: Iterable[np.ndarray], lengths: list[int]) -> Iterator[np.ndarray]:
    """The documents as they come, their lengths noted in `lengths`."""
    for tokens in documents:
        lengths.append(len(tokens))
        yield tokens


def _measured_pairs(
    pairs: Iterable[tuple[np.ndarray, np.ndarray]], lengths: list[int]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for inputs, targets in pairs:
        lengths.append(len(inputs) + len(targets))
        yield inputs, targets


def _write(path: Path, rows: Iterable[np.ndarray]) -> int:
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


def _shard_name(task: str, split: str) -> str:
    return f"{task}-{split}.array_record"


def _text_bytes(documents: list[Example]) -> int:
    return sum(len(document.text.encode()) for document in documents)


def _yardsticks(tasks: Tasks) -> dict[str, float]:
    """Bits per byte of two compressors on the whole validation text: what a model has to beat."""
    text = "".join(document.text for splits in tasks.values() for document in splits[VALIDATION]).encode()
    compressed = {"gzip -9": gzip.compress(text, 9), "xz -9": lzma.compress(text, preset=9)}
    return {name: 8 * len(data) / len(text) for name, data in compressed.items()}


@contextlib.contextmanager
def _writable(cache: Path) -> Iterator[None]:
    """Tells failed writes in the cache folder (full, read-only, not a folder) as a DataError naming it."""
    try:
        yield
    except OSError as error:
        raise DataError(f"data.cache_dir='{cache}' cannot be written: {error.strerror or error}") from error


def _check_size(corpus: Corpus, config: DataConfig) -> None:
    """Raises DataError when the corpus does not fill one batch."""
    for task, splits in corpus.counts.items():
        if not splits[TRAIN].sequences:
            raise DataError(
                f"task '{task}' is too small: its {splits[TRAIN].tokens} training tokens fill no sequence of "
                f"data.sequence_length={config.sequence_length}"
            )
    if corpus.train_sequences < config.batch_size:
        raise DataError(
            f"the corpus is too small: {corpus.train_sequences} training sequences of data.sequence_length="
            f"{config.sequence_length} do not fill one batch of data.batch_size={config.batch_size}"
        )
