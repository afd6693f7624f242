import numpy as np
import pytest
import seqio
import tensorflow as tf

from pathways_lm.config import DataConfig
from pathways_lm.data import metrics, pairs, sources, tasks
from pathways_lm.data.cache import prepare
from pathways_lm.data.examples import Document, Pair
from pathways_lm.data.loader import Loader
from pathways_lm.data.vocabulary import Vocabulary, train_vocabulary
from pathways_lm.models.batch import Batch

DOCS = {"train": [Document("a", "one two"), Document("b", "\u2581é 12\n\x00")], "validation": [Document("c", "three")]}
STDLIB = {"train": [Document("d", "def f(): pass\n" * 3)], "validation": [Document("e", "x = 1\n")]}


@pytest.fixture
def registered(vocabulary):
    tasks.register({"python_docs": DOCS, "python_stdlib": STDLIB}, vocabulary)


def examples(name: str, split: str) -> list[np.ndarray]:
    dataset = seqio.get_mixture_or_task(name).get_dataset(
        sequence_length=None, split=split, shuffle=False, num_epochs=1
    )
    return [example["targets"] for example in dataset.as_numpy_iterator()]


@pytest.mark.parametrize(("name", "splits"), [("python_docs", DOCS), ("python_stdlib", STDLIB)])
def test_task_yields_documents_and_their_end(registered, vocabulary, name, splits):
    for split, documents in splits.items():
        found = examples(name, split)
        assert all(tokens.dtype == np.int32 and tokens[-1] == vocabulary.eod_id for tokens in found)
        assert [vocabulary.decode(tokens[:-1].tolist()) for tokens in found] == [
            document.text for document in documents
        ]
        np.testing.assert_equal(list(tasks.tokens(name, split)), found)
        assert seqio.get_mixture_or_task(name).num_input_examples(split) == len(documents)


def test_mixture_yields_both_by_bytes(registered, vocabulary):
    mixture = seqio.get_mixture_or_task("python_text")
    assert {task.name for task in mixture.tasks} == {"python_docs", "python_stdlib"}
    rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
    docs_bytes, stdlib_bytes = len("one two") + len("\u2581é 12\n\x00".encode()), 42
    assert rates["python_docs"] / rates["python_stdlib"] == pytest.approx(docs_bytes / stdlib_bytes)
    dataset = mixture.get_dataset(sequence_length=None, split="train", shuffle=False, num_epochs=None, seed=0)
    texts = {vocabulary.decode(example["targets"].tolist()) for example in dataset.take(50).as_numpy_iterator()}
    assert texts == {document.text for splits in (DOCS, STDLIB) for document in splits["train"]}


def test_registering_again_replaces(registered, vocabulary):
    tasks.register({"python_docs": {**DOCS, "train": DOCS["train"][:1]}}, vocabulary)
    assert len(examples("python_docs", "train")) == 1


def test_our_cache_holds_what_seqio_yields(tmp_path, write_json_lines):
    write_json_lines(tmp_path / "text", files=4, lines=15)
    config = DataConfig(
        files=f"{tmp_path}/text/*.jsonl",
        cache_dir=f"{tmp_path}/cache",
        sequence_length=32,
        batch_size=2,
        validation_fraction=0.1,
    )
    corpus = prepare(config, 400)
    tasks.register(sources.read(config), corpus.vocabulary)
    yielded = np.concatenate(examples("files", "validation"))
    held = np.concatenate(
        [
            row
            for batch in Loader(corpus, config, lambda rows, _: Batch(rows, rows)).validation(1)
            for row in batch.targets
        ]
    )
    np.testing.assert_array_equal(held[: len(yielded)], yielded)
    assert not held[len(yielded) :].any()


def test_adapter_agrees_with_the_vocabulary(vocabulary):
    adapter = tasks.SeqioVocabulary(vocabulary)
    text = "\u2581 déjà vu 12\n\x00"
    ids = vocabulary.encode(text)
    assert adapter.encode(text) == ids
    assert adapter.decode(ids) == text
    assert adapter.encode_tf(tf.constant(text.encode())).numpy().tolist() == ids
    assert adapter.decode_tf(tf.constant(ids)).numpy().decode() == text
    assert adapter.decode_tf(tf.constant([ids, ids])).numpy().tolist() == [text.encode()] * 2
    assert (adapter.vocab_size, adapter.pad_id, adapter.eos_id, adapter.unk_id) == (512, 0, 1, 2)
    assert adapter == tasks.SeqioVocabulary(vocabulary)
    assert adapter != tasks.SeqioVocabulary(Vocabulary(train_vocabulary(["other words " * 9], 300)))


def test_tensorflow_sees_no_accelerator():
    assert tf.config.get_visible_devices("GPU") == []


PAIRS = {"train": [Pair("a", "calculate: 1 + 1", "2"), Pair("b", "é", "e")], "validation": [Pair("c", "x", "y")]}


def test_pairs_become_inputs_and_targets(vocabulary):
    tasks.register({"arithmetic": PAIRS}, vocabulary)
    task = seqio.get_mixture_or_task("arithmetic")
    dataset = task.get_dataset(sequence_length=None, split="train", shuffle=False, num_epochs=1)
    found = [(e["inputs"].tolist(), e["targets"].tolist()) for e in dataset.as_numpy_iterator()]
    expected = [tuple([*vocabulary.encode(text), vocabulary.eod_id] for text in pair.texts) for pair in PAIRS["train"]]
    assert found == expected
    assert [(a.tolist(), b.tolist()) for a, b in tasks.pair_tokens("arithmetic", "train")] == expected


def test_every_task_of_pairs_is_registered_with_its_metrics(vocabulary):
    """seqio calls them with targets and predictions; half of two are right."""
    tasks.register(dict.fromkeys(pairs.TASKS, PAIRS), vocabulary)
    for name in pairs.TASKS:
        task = seqio.get_mixture_or_task(name)
        assert [metric.__name__ for metric in task.metric_fns] == list(pairs.METRICS[name])
        scores = [metric(["twelve green bottles", "b"], ["twelve green bottles", "c"]) for metric in task.metric_fns]
        assert {name: score for found in scores for name, score in found.items()}.get("accuracy") == 50.0
    assert {task.name for task in seqio.get_mixture_or_task("text_to_text").tasks} == set(pairs.TASKS)
    members = seqio.get_mixture_or_task("translation").tasks
    assert {task.name for task in members} == {"country_names", "language_names"}


def test_bleu():
    """Of what is right it is 100, of what shares no word 0."""
    assert metrics.bleu(["a b c d e"], ["a b c d e"])["bleu"] == pytest.approx(100)
    assert metrics.bleu(["a b c d e"], ["f g h i j"])["bleu"] == pytest.approx(0, abs=1e-6)
