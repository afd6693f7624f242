import contextlib
import dataclasses
import gzip
import itertools
import json
import lzma
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader
from hypothesis import given
from hypothesis import strategies as st

from pathways_lm.config import DataConfig
from pathways_lm.data import build, cache, manifest, shards, sources
from pathways_lm.data.build import write_cache
from pathways_lm.data.cache import plan_cache, prepare
from pathways_lm.data.examples import Document
from pathways_lm.data.loader import Loader
from pathways_lm.data.questions import held_out
from pathways_lm.errors import DataError

LENGTH, VOCAB_SIZE = 32, 400
HALVES = (slice(64), slice(64, 128))


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
    documents = [
        Document(path.name, json.loads(line)["text"], part)
        for path in sorted((folder / "text").iterdir())
        for part, line in enumerate(path.read_text().splitlines())
    ]
    return tuple([document.text for document in side] for side in sources.split(documents, 0.1))


def stream(corpus, split: str) -> list[int]:
    rows = []
    for path in corpus.files("files", split):
        reader = ArrayRecordReader(path)
        rows += [np.frombuffer(record, "<i4") for record in reader.read_all()]
        reader.close()
    assert all(row.shape == (LENGTH,) for row in rows)
    return np.concatenate(rows).tolist()


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def shard_files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.array_record")}


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
    tokens = stream(corpus, "validation")
    assert documents_in(tokens, corpus.vocabulary) == [*split_texts(folder)[1], ""]


def test_training_holds_its_documents_but_the_tail(built):
    folder, corpus = built
    *whole, cut = documents_in(stream(corpus, "train"), corpus.vocabulary)
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
    monkeypatch.setattr(cache, "write_cache", None)
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
    """The command ends."""
    whole = build.write_shard

    def swallow(*arguments):
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        return whole(*arguments)

    # A shell's background starts with Ctrl-C ignored.
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(build, "write_shard", swallow)
    write_json_lines(tmp_path / "text", files=25, lines=2)
    with pytest.raises(KeyboardInterrupt):
        prepare(config(tmp_path), VOCAB_SIZE)
    assert not list(tmp_path.glob("cache/packed/*/manifest.json"))
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
    [shard] = map(Path, corpus.files("files", "train"))
    whole = shard.read_bytes()
    for damage in (
        lambda: shard.write_bytes(whole[:1000]),
        shard.unlink,
        lambda: (corpus.folder / "manifest.json").write_text("{"),
        lambda: (corpus.folder / "manifest.json").write_text("{}"),
        (corpus.folder / "vocabulary.model").unlink,
        lambda: [path.write_bytes(b"junk") for path in (tmp_path / "cache" / "vocabulary").iterdir()],
    ):
        damage()
        assert prepare(config(tmp_path), VOCAB_SIZE).fingerprint == corpus.fingerprint
        assert shard.read_bytes() == whole


def test_a_failed_build_goes_on_with_its_finished_shards(tmp_path, monkeypatch, write_json_lines):
    write_json_lines(tmp_path / "text", files=3, lines=20)
    with monkeypatch.context() as patch:
        patch.setattr(build, "yardsticks", lambda tasks: 1 / 0)  # after the shards are written
        with pytest.raises(ZeroDivisionError):
            prepare(config(tmp_path), VOCAB_SIZE)
    assert not list(tmp_path.glob("cache/packed/*/manifest.json"))
    monkeypatch.setattr(build, "write_shard", None)
    corpus = prepare(config(tmp_path), VOCAB_SIZE)
    assert list((tmp_path / "cache" / "packed").iterdir()) == [corpus.folder]
    assert not (corpus.folder / "journal.jsonl").exists()


def test_two_builders_at_once(tmp_path, monkeypatch, write_json_lines):
    """The second waits for the first, and takes over what that wrote."""
    write_json_lines(tmp_path / "text", files=3, lines=20)
    corpora, written, whole = [], [], build.write_shard
    second = threading.Thread(target=lambda: corpora.append(prepare(config(tmp_path), VOCAB_SIZE)))

    def meanwhile(folder, job, *others):
        written.append(job.file)
        if len(written) == 1:
            second.start()
            second.join(timeout=1)
            assert second.is_alive()
        return whole(folder, job, *others)

    monkeypatch.setattr(build, "write_shard", meanwhile)
    corpora.append(prepare(config(tmp_path), VOCAB_SIZE))
    second.join()
    assert corpora[0].fingerprint == corpora[1].fingerprint
    assert written == [f"files-{split}-00000-of-00001.array_record" for split in ("train", "validation")]


@pytest.fixture
def many_shards(monkeypatch):
    monkeypatch.setattr(shards, "_SHARD_BYTES", 1_000)


def test_shards_do_not_depend_on_the_workers(tmp_path, write_json_lines, many_shards):
    write_json_lines(tmp_path / "text", files=25, lines=2)
    plan = plan_cache(config(tmp_path), VOCAB_SIZE)
    assert len(plan.jobs) > 8
    manifests = [write_cache(tmp_path / str(workers), plan, workers, lambda advance: None) for workers in (0, 2)]
    assert manifests[0] == manifests[1]
    assert shard_files(tmp_path / "0") == shard_files(tmp_path / "2")
    assert len(shard_files(tmp_path / "0")) == len(plan.jobs)


def test_several_shards_hold_every_document_in_order(tmp_path, write_json_lines, many_shards):
    """But for what does not fill a sequence at the end of each training shard."""
    write_json_lines(tmp_path / "text", files=25, lines=2)
    corpus = prepare(config(tmp_path), VOCAB_SIZE)
    train, validation = split_texts(tmp_path)
    assert len(corpus.files("files", "train")) > 8
    assert documents_in(stream(corpus, "validation"), corpus.vocabulary) == [*validation, ""]
    counts = corpus.counts["files"]["train"]
    assert counts.documents == len(train)
    assert counts.tokens == sum(len(corpus.vocabulary.encode(text)) + 1 for text in train)
    lost = counts.tokens - LENGTH * counts.sequences
    assert 0 <= lost < LENGTH * len(corpus.files("files", "train"))
    text = "".join(documents_in(stream(corpus, "train"), corpus.vocabulary))
    assert text.startswith(train[0])
    assert Loader(corpus, config(tmp_path), None).rows(0, counts.sequences).shape == (counts.sequences, LENGTH)


def test_shards_of_pairs_hold_every_pair_in_order(tmp_path, many_shards):
    """Inputs in the first half of each row, targets in the second, each closed by its end."""
    (tmp_path / "text").mkdir()
    pairs = [(f"how much is {number} and {number}", f"it is {2 * number}") for number in range(200)]
    lines = [json.dumps({"inputs": inputs, "targets": targets}) + "\n" for inputs, targets in pairs]
    (tmp_path / "text" / "a.jsonl").write_text("".join(lines))
    asked = config(tmp_path, objective="text_to_text", sequence_length=64)
    corpus = prepare(asked, VOCAB_SIZE)
    assert len(corpus.files("files", "train")) > 3
    found = []
    for split in ("train", "validation"):
        for path in corpus.files("files", split):
            for record in ArrayRecordReader(path).read_all():
                row = np.frombuffer(record, "<i4")
                halves = [documents_in(row[part].tolist(), corpus.vocabulary)[:-1] for part in HALVES]
                found.append(list(zip(*halves, strict=True)))
    assert sorted(itertools.chain(*found)) == sorted(pairs)
    train = list(itertools.chain(*found[: corpus.train_sequences]))
    assert train == [pair for pair in pairs if pair in train]


@given(st.lists(st.integers(1, 400), min_size=1, max_size=60), st.integers(1, 500), st.integers(1, 20))
def test_documents_are_dealt_in_runs_of_about_equal_bytes(sizes, shard_bytes, most):
    documents = [Document("a", "x" * size, part) for part, size in enumerate(sizes)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "_SHARD_BYTES", shard_bytes)
        patch.setattr(shards, "_MOST_SHARDS", most)
        runs = shards.deal(documents)
    assert [document for run in runs for document in run] == documents
    assert all(runs)
    wanted = min(-(-sum(sizes) // shard_bytes), most)
    assert len(runs) <= wanted
    largest = max(sum(len(document.text) for document in run) for run in runs)
    assert largest <= sum(sizes) / wanted + max(sizes)


def test_a_cut_journal_and_a_damaged_shard(tmp_path, monkeypatch, write_json_lines, many_shards):
    """What a kill or a disk can leave: taken over is what is whole, and nothing else."""
    write_json_lines(tmp_path / "text", files=25, lines=2)
    plan = plan_cache(config(tmp_path), VOCAB_SIZE)
    expected = write_cache(tmp_path / "whole", plan, 0, lambda advance: None)
    with monkeypatch.context() as patch:
        patch.setattr(build, "yardsticks", lambda tasks: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_cache(tmp_path / "out", plan, 0, lambda advance: None)
    journal = tmp_path / "out" / "journal.jsonl"
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join([*lines[:5], lines[5][:40]]))
    damaged = tmp_path / "out" / json.loads(lines[2])["file"]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    (tmp_path / "out" / ".begun-1").write_bytes(b"half")
    written, whole = [], build.write_shard
    monkeypatch.setattr(
        build, "write_shard", lambda folder, job, *rest: written.append(job) or whole(folder, job, *rest)
    )
    assert write_cache(tmp_path / "out", plan, 0, lambda advance: None) == expected
    assert shard_files(tmp_path / "out") == shard_files(tmp_path / "whole")
    assert len(written) == len(plan.jobs) - 3  # of four whole lines behind the first, one's file is damaged
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        path.name for path in (tmp_path / "whole").iterdir()
    }


def test_a_given_cache(tmp_path, write_json_lines, monkeypatch):
    """It is read in place of the sources, which need not be there any more."""
    write_json_lines(tmp_path / "text", files=25, lines=2)
    corpus = prepare(config(tmp_path), VOCAB_SIZE)
    monkeypatch.setattr(sources, "read", None)
    given = config(tmp_path, cache=str(corpus.folder))
    again = prepare(given, VOCAB_SIZE)
    assert (again.fingerprint, again.shards, again.rates) == (corpus.fingerprint, corpus.shards, corpus.rates)
    np.testing.assert_array_equal(Loader(again, given, None).rows(0, 9), Loader(corpus, given, None).rows(0, 9))


@pytest.mark.parametrize(
    ("changes", "vocab_size", "words"),
    [
        ({"sequence_length": 64}, VOCAB_SIZE, r"data.sequence_length=32, not 64"),
        ({"objective": "prefix"}, VOCAB_SIZE, r"data.objective='causal', not 'prefix'"),
        ({"validation_fraction": 0.2}, VOCAB_SIZE, r"data.validation_fraction=0.1, not 0.2"),
        ({"files": ""}, VOCAB_SIZE, r"data.mixture='', not 'python_text'"),
        ({}, 300, r"vocabulary='400 pieces learned from the corpus', not '300 pieces learned"),
    ],
)
def test_a_given_cache_for_something_else(built, changes, vocab_size, words):
    folder, corpus = built
    with pytest.raises(DataError, match=rf"^data.cache='{corpus.folder}' was written for {words}"):
        prepare(config(folder, cache=str(corpus.folder), **changes), vocab_size)


def test_a_given_cache_for_another_vocabulary_file(built, vocabulary, tmp_path):
    folder, corpus = built
    (tmp_path / "own.model").write_bytes(vocabulary.model)
    own = config(folder, cache=str(corpus.folder), vocabulary=f"{tmp_path}/own.model")
    with pytest.raises(DataError, match=f"vocabulary='400 .*', not 'the model with SHA-256 {vocabulary.fingerprint}'"):
        prepare(own, 600)


def test_a_folder_without_a_cache(tmp_path):
    with pytest.raises(DataError, match=rf"^data.cache='{tmp_path}' holds no cache: it has no manifest.json"):
        prepare(config(tmp_path, cache=str(tmp_path)), VOCAB_SIZE)
    (tmp_path / "journal.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=rf"^data.cache='{tmp_path}' is not finished; "):
        prepare(config(tmp_path, cache=str(tmp_path)), VOCAB_SIZE)


def test_a_given_cache_that_lost_a_file(tmp_path, write_json_lines):
    write_json_lines(tmp_path / "text", files=25, lines=2)
    corpus = prepare(config(tmp_path), VOCAB_SIZE)
    Path(corpus.files("files", "train")[0]).unlink()
    given = config(tmp_path, cache=str(corpus.folder))
    with pytest.raises(DataError, match=rf"^data.cache='{corpus.folder}' is damaged: 'pathways-lm data check"):
        prepare(given, VOCAB_SIZE)


def test_check_names_what_is_damaged(tmp_path, write_json_lines):
    write_json_lines(tmp_path / "text", files=25, lines=2)
    corpus = prepare(config(tmp_path), VOCAB_SIZE)
    read = []
    manifest.check(corpus.folder, read.append)
    assert [shard.file for shard in read] == [Path(file).name for file in all_files(corpus)]
    for file in all_files(corpus):
        content = Path(file).read_bytes()
        middle = len(content) // 2
        Path(file).write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        with pytest.raises(DataError, match=rf"^'{file}' is damaged: it is not what was written \(SHA-256\); the"):
            manifest.check(corpus.folder, read.append)
        Path(file).write_bytes(content)
    (corpus.folder / "vocabulary.model").unlink()
    with pytest.raises(DataError, match=rf"^'{corpus.folder}/vocabulary.model' cannot be read: No such file"):
        manifest.check(corpus.folder, read.append)


def all_files(corpus) -> list[str]:
    return [file for split in ("train", "validation") for file in corpus.files("files", split)]


def test_another_cache_is_not_written_over(tmp_path, write_json_lines):
    """Neither a finished nor a begun one."""
    write_json_lines(tmp_path / "text", files=25, lines=2)
    plan = plan_cache(config(tmp_path), VOCAB_SIZE)
    write_cache(tmp_path / "out", plan, 0, lambda advance: None)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    other = plan_cache(config(tmp_path, sequence_length=16), VOCAB_SIZE)
    message = rf"^the cache in '{tmp_path}/out' was written for data.sequence_length=32, not 16; use another folder"
    with pytest.raises(DataError, match=message):
        write_cache(tmp_path / "out", other, 0, lambda advance: None)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    (tmp_path / "out" / "manifest.json").unlink()
    head = {"fingerprint": plan.fingerprint, "asked": plan.asked}
    (tmp_path / "out" / "journal.jsonl").write_text(json.dumps(head) + "\n")
    with pytest.raises(DataError, match=message):
        write_cache(tmp_path / "out", other, 0, lambda advance: None)


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
    assert not [name for name in left if name.endswith(".array_record") or name.startswith(".begun")]


def test_task_smaller_than_a_batch(built):
    folder, corpus = built
    counts = corpus.counts["files"]["train"]
    for changes, sequences in (({"batch_size": 5000}, counts.sequences), ({"sequence_length": 10**6}, 0)):
        asked = config(folder, **changes)
        message = (
            rf"^task 'files' is too small: its {counts.tokens} training tokens make {sequences} sequences of "
            rf"data.sequence_length={asked.sequence_length}, less than one batch of data.batch_size={asked.batch_size}$"
        )
        with pytest.raises(DataError, match=message):
            prepare(asked, VOCAB_SIZE)


def test_few_examples_fill_a_batch_several_times(tmp_path):
    """Three rows for batches of eight: each as often as any other, in every epoch of three."""
    few = DataConfig(
        mixture="dates", objective="text_to_text", examples=30, batch_size=8, sequence_length=64,
        cache_dir=str(tmp_path), seed=3,
    )  # fmt: skip
    corpus = prepare(few, 600)
    counts = corpus.counts["dates"]["train"]
    assert counts.documents == 30 and counts.sequences < 8
    rows = Loader(corpus, few, None).rows(0, 8 * counts.sequences)
    _, times = np.unique(rows, axis=0, return_counts=True)
    assert times.tolist() == [8] * counts.sequences
    with pytest.raises(DataError, match=r"^data.cache='.*' was written for data.examples=30, not None"):
        prepare(dataclasses.replace(few, examples=0, cache=str(corpus.folder)), 600)
    with pytest.raises(DataError, match=r"was written for data.seed=3, not 4"):
        prepare(dataclasses.replace(few, seed=4, cache=str(corpus.folder)), 600)


def test_held_out_pairs_are_those_of_the_sources(tmp_path):
    """As text again, evenly over the split, for both forms of rows."""
    for inputs, length in (("encoder", 64), ("causal", 96)):
        data = DataConfig(
            mixture="exact_answers", objective="text_to_text", inputs=inputs, examples=40, sequence_length=length,
            cache_dir=str(tmp_path),
        )  # fmt: skip
        corpus = prepare(data, 600)
        whole = {task: splits["validation"] for task, splits in sources.read(data).items()}
        found = held_out(corpus, data, 50)
        assert list(found) == list(whole)
        for task, questions in found.items():
            texts = [(pair.inputs, pair.targets) for pair in whole[task]]
            places = [texts.index(question) for question in questions]
            assert len(places) == 50 and places[0] == 0 and places[-1] == len(texts) - 1
            assert max(np.diff(places)) - min(np.diff(places)) <= 1
        assert {task: len(each) for task, each in held_out(corpus, data, 10**6).items()} == {
            task: len(pairs) for task, pairs in whole.items()
        }


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
