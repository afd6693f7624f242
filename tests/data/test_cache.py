import contextlib
import gzip
import json
import lzma
import os
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest

from pathways_lm.config import DataConfig
from pathways_lm.data import cache, sources
from pathways_lm.data.cache import prepare
from pathways_lm.data.loader import Loader
from pathways_lm.errors import DataError

LENGTH, VOCAB_SIZE = 32, 400


def config(folder, **changes) -> DataConfig:
    values = {
        "files": f"{folder}/text/*.jsonl",
        "cache_dir": f"{folder}/cache",
        "sequence_length": LENGTH,
        "batch_size": 4,
        "validation_fraction": 0.1,
    }
    return DataConfig(**{**values, **changes})


@pytest.fixture(scope="module")
def built(tmp_path_factory, write_json_lines):
    """A folder of 25 files, two documents each, and its corpus."""
    folder = tmp_path_factory.mktemp("built")
    write_json_lines(folder / "text", files=25, lines=2)
    return folder, prepare(config(folder), VOCAB_SIZE)


def split_texts(folder) -> tuple[list[str], list[str]]:
    splits = sources.read(config(folder))["files"]
    return tuple([document.text for document in splits[split]] for split in ("train", "validation"))


def stream(path) -> list[int]:
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(str(path))
    rows = [np.frombuffer(record, "<i4") for record in reader.read_all()]
    reader.close()
    assert all(row.shape == (LENGTH,) for row in rows)
    return np.concatenate(rows).tolist()


def documents_in(tokens: list[int], vocabulary) -> list[str]:
    """The texts between end-of-document tokens, the last one without its token."""
    texts, begun = [], []
    for token in tokens:
        if token == vocabulary.eod_id:
            texts.append(vocabulary.decode(begun))
            begun = []
        elif token:
            begun.append(token)
    return [*texts, vocabulary.decode(begun)]


def test_validation_holds_its_documents(built):
    folder, corpus = built
    tokens = stream(corpus.shard("files", "validation"))
    assert documents_in(tokens, corpus.vocabulary) == [*split_texts(folder)[1], ""]


def test_training_holds_its_documents_but_the_tail(built):
    folder, corpus = built
    *whole, cut = documents_in(stream(corpus.shard("files", "train")), corpus.vocabulary)
    train = split_texts(folder)[0]
    assert whole == train[: len(whole)]
    assert len(train) - len(whole) <= 1
    assert "".join(train[len(whole) :]).startswith(cut)


def test_counts(built):
    folder, corpus = built
    for split, texts in zip(("train", "validation"), split_texts(folder), strict=True):
        counts = corpus.counts["files"][split]
        tokens = sum(len(corpus.vocabulary.encode(text)) + 1 for text in texts)
        assert (counts.documents, counts.tokens) == (len(texts), tokens)
        assert counts.bytes == len("".join(texts).encode())
        assert counts.sequences == (tokens // LENGTH if split == "train" else -(-tokens // LENGTH))
    assert corpus.validation_bytes == len("".join(split_texts(folder)[1]).encode())
    assert corpus.train_sequences == corpus.counts["files"]["train"].sequences
    assert corpus.rates == {"files": 1.0}


def test_yardsticks(built):
    folder, corpus = built
    text = "".join(split_texts(folder)[1]).encode()
    assert corpus.yardsticks == {
        "gzip -9": 8 * len(gzip.compress(text, compresslevel=9)) / len(text),
        "xz -9": 8 * len(lzma.compress(text, preset=9)) / len(text),
    }


def test_a_ready_cache_is_not_built_again(built, monkeypatch):
    folder, corpus = built
    monkeypatch.setattr(cache, "_build", None)
    monkeypatch.setattr(cache, "train_vocabulary", None)
    for changes in ({}, {"seed": 7}, {"batch_size": 2}):
        again = prepare(config(folder, **changes), VOCAB_SIZE)
        assert (again.fingerprint, again.counts, again.rates, again.yardsticks, again.vocabulary.fingerprint) == (
            corpus.fingerprint,
            corpus.counts,
            corpus.rates,
            corpus.yardsticks,
            corpus.vocabulary.fingerprint,
        )


def test_a_ready_cache_needs_no_tensorflow(built):
    folder, corpus = built
    program = (
        "import sys\n"
        "from pathways_lm.config import DataConfig\n"
        "from pathways_lm.data.cache import prepare\n"
        "from pathways_lm.data.loader import Loader\n"
        f"config = {config(folder)!r}\n"
        f"corpus = prepare(config, {VOCAB_SIZE})\n"
        "print(corpus.fingerprint, Loader(corpus, config, None).rows(0, 4).shape)\n"
        "print([name for name in ('tensorflow', 'seqio') if name in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == [f"{corpus.fingerprint} (4, {LENGTH})", "[]"]


def test_an_interrupt_that_a_library_swallows(tmp_path, write_json_lines, monkeypatch):
    """Nothing is left of the corpus, and the command ends."""

    def swallow(tasks):
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        return {}

    # A shell's background starts with Ctrl-C ignored.
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(cache, "_yardsticks", swallow)
    write_json_lines(tmp_path / "text", files=25, lines=2)
    with pytest.raises(KeyboardInterrupt):
        prepare(config(tmp_path), VOCAB_SIZE)
    assert list((tmp_path / "cache" / "packed").iterdir()) == []
    assert signal.getsignal(signal.SIGINT) is before


def test_building_writes_nothing_to_the_terminal(tmp_path, write_json_lines):
    write_json_lines(tmp_path / "text", files=3, lines=20)
    program = (
        "from pathways_lm.config import DataConfig\n"
        "from pathways_lm.data.cache import prepare\n"
        f"prepare({config(tmp_path)!r}, {VOCAB_SIZE})\n"
        "import tensorflow as tf; print(tf.config.get_visible_devices('GPU'))\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("[]\n", "")


@pytest.mark.parametrize("changes", [{"sequence_length": 16}, {"validation_fraction": 0.3}])
def test_other_settings_are_another_corpus(built, changes):
    folder, corpus = built
    other = prepare(config(folder, **changes), VOCAB_SIZE)
    assert other.fingerprint != corpus.fingerprint
    assert Loader(other, config(folder, **changes), None).rows(0, 2).shape == (2, other.sequence_length)


def test_an_edited_file_is_noticed(tmp_path, write_json_lines):
    write_json_lines(tmp_path / "text", files=3, lines=20)
    before = prepare(config(tmp_path), VOCAB_SIZE)
    edited = tmp_path / "text" / "001.jsonl"
    times = edited.stat()
    edited.write_text(edited.read_text().replace(" the ", " eht ", 1))
    os.utime(edited, ns=(times.st_atime_ns, times.st_mtime_ns))  # same size, same time: the content differs
    after = prepare(config(tmp_path), VOCAB_SIZE)
    assert after.fingerprint != before.fingerprint


def test_a_damaged_cache_is_built_again(tmp_path, write_json_lines):
    write_json_lines(tmp_path / "text", files=3, lines=20)
    corpus = prepare(config(tmp_path), VOCAB_SIZE)
    shard = corpus.shard("files", "train")
    whole = shard.read_bytes()
    for damage in (
        lambda: shard.write_bytes(whole[:1000]),
        shard.unlink,
        lambda: (corpus.folder / "corpus.json").write_text("{"),
        lambda: (corpus.folder / "corpus.json").write_text("{}"),
        lambda: [path.write_bytes(b"junk") for path in (tmp_path / "cache" / "vocabulary").iterdir()],
    ):
        damage()
        assert prepare(config(tmp_path), VOCAB_SIZE).fingerprint == corpus.fingerprint
        assert shard.read_bytes() == whole


def test_a_killed_build_leaves_nothing_half_made(tmp_path, monkeypatch, write_json_lines):
    write_json_lines(tmp_path / "text", files=3, lines=20)
    with monkeypatch.context() as patch:
        patch.setattr(cache, "_yardsticks", lambda tasks: 1 / 0)  # after the shards are written
        with pytest.raises(ZeroDivisionError):
            prepare(config(tmp_path), VOCAB_SIZE)
    assert list((tmp_path / "cache" / "packed").iterdir()) == []
    corpus = prepare(config(tmp_path), VOCAB_SIZE)
    assert list((tmp_path / "cache" / "packed").iterdir()) == [corpus.folder]


def test_two_builders_at_once(tmp_path, monkeypatch, write_json_lines):
    """A second builder finishes while the first is at it."""
    write_json_lines(tmp_path / "text", files=3, lines=20)
    yardsticks, others = cache._yardsticks, []

    def meanwhile(tasks):
        monkeypatch.setattr(cache, "_yardsticks", yardsticks)
        others.append(prepare(config(tmp_path), VOCAB_SIZE))
        return yardsticks(tasks)

    monkeypatch.setattr(cache, "_yardsticks", meanwhile)
    corpus = prepare(config(tmp_path), VOCAB_SIZE)
    assert [other.fingerprint for other in others] == [corpus.fingerprint]
    assert list((tmp_path / "cache" / "packed").iterdir()) == [corpus.folder]


def test_given_vocabulary(built, vocabulary, tmp_path):
    folder, corpus = built
    (tmp_path / "own.model").write_bytes(vocabulary.model)
    own = prepare(config(folder, vocabulary=f"{tmp_path}/own.model"), 600)
    assert own.vocabulary.fingerprint == vocabulary.fingerprint
    assert own.fingerprint != corpus.fingerprint
    with pytest.raises(DataError, match=r"own.model' has 512 pieces, more than model.vocab_size=300"):
        prepare(config(folder, vocabulary=f"{tmp_path}/own.model"), 300)


def test_cache_dir_that_is_a_file(built, tmp_path):
    folder, _ = built
    (tmp_path / "file").write_text("")
    with pytest.raises(
        DataError, match=rf"^data.cache_dir='{tmp_path}/file' cannot be written: (Not a directory|File exists)$"
    ):
        prepare(config(folder, cache_dir=f"{tmp_path}/file"), VOCAB_SIZE)


@pytest.mark.parametrize(
    ("limit_bytes", "reason"), [(1_000, "File too large"), (70_000, r"write\(\) failed: File too large")]
)
def test_full_disk(tmp_path, limit_bytes, reason, write_json_lines):
    """Files may not grow beyond a limit, as on a disk that is full: in the vocabulary, then in a shard."""
    write_json_lines(tmp_path / "text", files=10, lines=100, words=100)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    sources_read = config(tmp_path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        with pytest.raises(DataError, match=rf"^data.cache_dir='{tmp_path}/cache' cannot be written: {reason}$"):
            prepare(sources_read, VOCAB_SIZE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    left = [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert all(name.endswith(".model") for name in left)


def test_corpus_smaller_than_a_batch(built):
    folder, corpus = built
    message = (
        rf"^the corpus is too small: {corpus.train_sequences} training sequences of data.sequence_length=32 "
        r"do not fill one batch of data.batch_size=5000$"
    )
    with pytest.raises(DataError, match=message):
        prepare(config(folder, batch_size=5000), VOCAB_SIZE)


def test_task_smaller_than_a_sequence(built):
    folder, corpus = built
    tokens = corpus.counts["files"]["train"].tokens
    with pytest.raises(
        DataError, match=rf"^task 'files' is too small: its {tokens} training tokens fill no sequence of"
    ):
        prepare(config(folder, sequence_length=10**6), VOCAB_SIZE)


def test_one_document(tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.jsonl").write_text(json.dumps({"text": "alone"}))
    with pytest.raises(DataError, match=r"^the corpus is too small: 1 document"):
        prepare(config(tmp_path), VOCAB_SIZE)


def test_python_docs(tmp_path):
    """A real corpus, from nothing to batches."""
    docs = DataConfig(mixture="python_docs", cache_dir=str(tmp_path), sequence_length=128, batch_size=8)
    corpus = prepare(docs, 1024)
    rows = Loader(corpus, docs, None).rows(0, 8)
    assert corpus.vocabulary.size == 1024
    assert rows.min() > 0
    assert rows.max() < 1024
    assert 2 < corpus.counts["python_docs"]["train"].bytes / corpus.counts["python_docs"]["train"].tokens < 4
    assert 1 < corpus.yardsticks["gzip -9"] < 4
