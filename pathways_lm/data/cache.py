"""The corpus on disk, ready to be read by index: tokenized and packed once.

`data.cache` names a folder that `pathways-lm data cache` wrote. Without it, the corpus is kept under a hash of its
content:

<cache_dir>/vocabulary/<hash>.model         SentencePiece models
<cache_dir>/packed/<fingerprint>/           one corpus, as `manifest` describes it
"""

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pathways_lm.config import DataConfig
from pathways_lm.data import sources
from pathways_lm.data.build import Plan, Tasks, make_plan, write_cache
from pathways_lm.data.examples import TRAIN, VALIDATION
from pathways_lm.data.manifest import (
    MANIFEST,
    VOCABULARY,
    Counts,
    Manifest,
    Shard,
    difference,
    finished,
    is_there,
    read_manifest,
    total,
    write_whole,
)
from pathways_lm.data.objectives import inputs_length, raw_length
from pathways_lm.data.shards import Row
from pathways_lm.data.vocabulary import Vocabulary, load_vocabulary, train_vocabulary, training_key
from pathways_lm.errors import DataError

_log = logging.getLogger(__name__)

__all__ = ["TRAIN", "VALIDATION", "Corpus", "Counts", "plan_cache", "prepare", "writable"]


@dataclass(frozen=True)
class Corpus:
    """A packed corpus.

    `fingerprint` changes with everything that decides a batch but seed, batch size and mixture: documents,
    vocabulary, sequence length.
    """

    fingerprint: str
    folder: Path
    vocabulary: Vocabulary
    sequence_length: int
    shards: Mapping[str, Mapping[str, tuple[Shard, ...]]]
    """Task -> split -> shards in order."""
    rates: Mapping[str, float]
    """Task -> its share of the training sequences; they add up to 1."""
    yardsticks: Mapping[str, float]
    """Compressor -> bits per byte on the validation text."""

    @property
    def counts(self) -> Mapping[str, Mapping[str, Counts]]:
        """Task -> split -> counts."""
        return {
            task: {split: total(shards) for split, shards in splits.items()} for task, splits in self.shards.items()
        }

    @property
    def train_sequences(self) -> int:
        return sum(splits[TRAIN].sequences for splits in self.counts.values())

    @property
    def validation_bytes(self) -> int:
        """UTF-8 bytes of the text that the validation tokens stand for."""
        return sum(splits[VALIDATION].bytes for splits in self.counts.values())

    def files(self, task: str, split: str) -> list[str]:
        """The split's ArrayRecord files, in order."""
        return [str(self.folder / shard.file) for shard in self.shards[task][split]]


def prepare(config: DataConfig, vocab_size: int) -> Corpus:
    """The packed corpus that `config` asks for: read from `data.cache`, or from the cache folder, or built now.

    Its sequences have as many tokens as the objective makes one example of. The vocabulary leaves room for
    `data.extra_ids` in the model's `vocab_size` rows.

    Building takes some 20 s for the text that comes with Python; reading the cache about one, without
    tensorflow. Several processes may do it at once. Raises ConfigError for an unknown mixture, DataError for
    files, a vocabulary or a cache that cannot be used, and for a task smaller than one batch.
    """
    corpus = _given(config, vocab_size) if config.cache else _kept_by_content(config, vocab_size)
    _check_size(corpus, config)
    return corpus


def _given(config: DataConfig, vocab_size: int) -> Corpus:
    """The cache in the folder `data.cache`. Raises DataError where it was written for something else."""
    folder = Path(config.cache).expanduser()
    called = f"data.cache='{config.cache}'"
    manifest = finished(folder, called)
    other = difference(manifest.asked, asked(config, vocab_size))
    if other:
        raise DataError(f"{called} was written for {other}; 'pathways-lm data cache' writes another")
    if not is_there(folder, manifest):
        raise DataError(f"{called} is damaged: 'pathways-lm data check {config.cache}' says where")
    corpus = _corpus(folder, manifest)
    if corpus.vocabulary.fingerprint != manifest.vocabulary_sha256:
        raise DataError(f"'{folder / VOCABULARY}' is damaged: it is not what was written (SHA-256)")
    return corpus


def _kept_by_content(config: DataConfig, vocab_size: int) -> Corpus:
    cache = Path(config.cache_dir).expanduser()
    plan = plan_cache(config, vocab_size)
    folder = cache / "packed" / plan.fingerprint
    try:
        manifest = read_manifest(folder)
    except DataError:
        # Not an error here: it can be written again.
        manifest = None
        (folder / MANIFEST).unlink()
    if manifest is None or not is_there(folder, manifest):
        with writable(f"data.cache_dir='{cache}'"):
            manifest = write_cache(folder, plan, workers=0, report=lambda advance: None)
    return _corpus(folder, manifest)


def _corpus(folder: Path, manifest: Manifest) -> Corpus:
    return Corpus(
        fingerprint=manifest.fingerprint,
        folder=folder,
        vocabulary=Vocabulary((folder / VOCABULARY).read_bytes()),
        sequence_length=manifest.sequence_length,
        shards=manifest.shards,
        rates=manifest.rates,
        yardsticks=manifest.yardsticks,
    )


def asked(config: DataConfig, vocab_size: int) -> dict[str, Any]:
    """What of a configuration decides the rows of its cache, by the name that a user knows it by."""
    if config.vocabulary:
        vocabulary = load_vocabulary(os.path.expanduser(config.vocabulary), vocab_size - config.extra_ids)
        which = f"the model with SHA-256 {vocabulary.fingerprint}"
    else:
        which = f"{vocab_size - config.extra_ids} pieces learned from the corpus"
    source = {"data.mixture": "" if config.files else config.mixture, "data.files": config.files}
    # How files are read, and what becomes of the text.
    names = ["text_key", "inputs_key", "targets_key"] if config.files else []
    names += ["objective", "inputs", "sequence_length", "targets_length", "validation_fraction"]
    names += ["examples", "seed"] if config.examples else []
    return {**source, **{f"data.{name}": getattr(config, name) for name in names}, "vocabulary": which}


def plan_cache(config: DataConfig, vocab_size: int) -> Plan:
    """Reads the documents that `config` asks for, learns their vocabulary where none is given, and plans their cache.

    Raises what `prepare` raises of documents and vocabularies.
    """
    tasks = sources.read(config)
    vocabulary = _vocabulary(config, vocab_size - config.extra_ids, tasks)
    return make_plan(tasks, vocabulary, Row(raw_length(config), inputs_length(config)), asked(config, vocab_size))


def _vocabulary(config: DataConfig, size: int, tasks: Tasks) -> Vocabulary:
    if config.vocabulary:
        return load_vocabulary(os.path.expanduser(config.vocabulary), size)
    texts = [text for splits in tasks.values() for example in splits[TRAIN] for text in example.texts]
    cache = Path(config.cache_dir).expanduser()
    path = cache / "vocabulary" / f"{training_key(texts, size)}.model"
    # A damaged file is not an error here: the same model can be learned again.
    with contextlib.suppress(OSError, ValueError):
        return Vocabulary(path.read_bytes())
    _log.info("learning a vocabulary of %d pieces", size)
    model = train_vocabulary(texts, size)
    with writable(f"data.cache_dir='{cache}'"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, model)
    return Vocabulary(model)


@contextlib.contextmanager
def writable(folder: str) -> Iterator[None]:
    """Tells failed writes (the disk full, read-only, not a folder) as a DataError that begins with `folder`."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{folder} cannot be written: {error.strerror or error}") from error


def _check_size(corpus: Corpus, config: DataConfig) -> None:
    """Raises DataError when a task does not fill one batch. Of few examples, rows come several times in a batch."""
    for task, splits in corpus.counts.items():
        found = splits[TRAIN]
        if config.examples and found.sequences:
            continue
        if found.sequences < config.batch_size:
            raise DataError(
                f"task '{task}' is too small: its {found.tokens} training tokens make {found.sequences} sequences of "
                f"data.sequence_length={config.sequence_length}, less than one batch of "
                f"data.batch_size={config.batch_size}"
            )
