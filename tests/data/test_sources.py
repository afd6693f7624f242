import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathways_lm.config import DataConfig
from pathways_lm.data import sources
from pathways_lm.data.examples import Document, Pair
from pathways_lm.errors import ConfigError, DataError

NAMES = st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=80, unique=True)
FRACTIONS = st.floats(0.001, 0.5)


def test_python_docs():
    documents = sources.python_docs()
    texts = {document.name: document.text for document in documents}
    assert 'The "with" statement' in texts["with"]
    assert list(texts) == sorted(texts)
    assert 400_000 < sum(map(len, texts.values())) < 2_000_000


def test_python_stdlib():
    documents = sources.python_stdlib()
    names = [document.name for document in documents]
    assert names == sorted(set(names))
    assert {"json/decoder.py", "argparse.py", "asyncio/base_events.py"} <= set(names)
    for name in names:
        assert not {"test", "tests", "idle_test", "site-packages", "pydoc_data"}.intersection(name.split("/")), name
    source = next(document.text for document in documents if document.name == "json/decoder.py")
    assert source.encode() == Path(json.decoder.__file__).read_bytes()
    assert 8e6 < sum(len(document.text) for document in documents) < 20e6


def test_read_gives_the_members_of_a_mixture():
    documents = sources.read(DataConfig())
    assert list(documents) == ["python_docs", "python_stdlib"]
    assert list(sources.read(DataConfig(mixture="python_docs"))) == ["python_docs"]


def test_unknown_mixture():
    with pytest.raises(
        ConfigError, match=r"^data.mixture has no task or mixture 'python_doc'; did you mean 'python_docs'\?$"
    ):
        sources.read(DataConfig(mixture="python_doc"))


@given(NAMES, FRACTIONS)
def test_split_shares_out_every_document_once(names, fraction):
    documents = [Document(name, "text", part) for name in names for part in range(2)]
    train, validation = sources.split(documents, fraction)
    assert train
    assert validation
    assert sorted(train + validation, key=documents.index) == documents
    assert [train, validation] == [sorted(side, key=documents.index) for side in (train, validation)]
    if len(names) >= 20:
        assert not {d.name for d in train} & {d.name for d in validation}


def test_split_keeps_the_fraction():
    documents = [Document(f"file {i}", "text") for i in range(5_000)]
    _, validation = sources.split(documents, 0.1)
    assert 400 < len(validation) < 600


def test_split_is_stable():
    """Neither order nor other files decide where a file goes."""
    documents = [Document(f"file {i}", "text") for i in range(200)]
    _, validation = sources.split(documents, 0.1)
    _, backwards = sources.split(documents[::-1], 0.1)
    _, fewer = sources.split(documents[:100], 0.1)
    assert validation == backwards[::-1]
    assert fewer == [document for document in validation if document in documents[:100]]
    # printf 'file %s' $i | sha256sum: the first whose digests start below 0x1999 (a tenth of 0xffff).
    assert [document.name for document in validation][:3] == ["file 4", "file 6", "file 37"]


def test_split_needs_two():
    message = "^the corpus is too small: 1 document, and training and validation need one each$"
    with pytest.raises(DataError, match=message):
        sources.split([Document("a", "text")], 0.1)


@given(NAMES)
def test_rates_are_shares_of_bytes(names):
    train = {name: [Document("a", "é" * (i + 1)), Document("b", "x")] for i, name in enumerate(names)}
    sizes = [2 * (i + 1) + 1 for i in range(len(names))]
    rates = sources.sampling_rates(train)
    assert list(rates.values()) == pytest.approx([size / sum(sizes) for size in sizes])


def test_members_of_mixtures_are_tasks():
    assert {member for members in sources.MIXTURES.values() for member in members} <= set(sources.TASKS)


def test_text_to_text_reads_pairs():
    splits = sources.read(DataConfig(mixture="arithmetic", objective="text_to_text"))["arithmetic"]
    assert all(isinstance(example, Pair) for split in splits.values() for example in split)
    assert not {pair.inputs for pair in splits["train"]} & {pair.inputs for pair in splits["validation"]}


@pytest.mark.parametrize(
    ("mixture", "objective", "message"),
    [
        (
            "python_docs",
            "text_to_text",
            r"^task 'python_docs' has documents, and data.objective='text_to_text' needs pairs of inputs and targets; "
            r"use another objective, or a task of pairs: docstring_to_name, .*dates$",
        ),
        (
            "arithmetic",
            "causal",
            r"^task 'arithmetic' has pairs of inputs and targets, and data.objective='causal' needs documents; "
            r"use data.objective='text_to_text', or a task of documents: python_docs, python_stdlib$",
        ),
    ],
)
def test_tasks_for_another_objective(mixture, objective, message):
    with pytest.raises(DataError, match=message):
        sources.read(DataConfig(mixture=mixture, objective=objective))


def test_few_examples():
    """In their order; fewer of them are a part; another seed gives others; validation is whole."""

    def read(examples: int, seed: int = 0):
        config = DataConfig(mixture="exact_answers", objective="text_to_text", examples=examples, seed=seed)
        return sources.read(config)

    whole, hundred, ten, others = read(0), read(100), read(10), read(100, seed=1)
    for task, splits in whole.items():
        places = {pair: place for place, pair in enumerate(splits["train"])}
        for chosen, count in ((hundred, 100), (ten, 10), (others, 100)):
            assert chosen[task]["validation"] == splits["validation"]
            kept = [places[pair] for pair in chosen[task]["train"]]
            assert len(kept) == count and kept == sorted(kept)
        assert set(ten[task]["train"]) < set(hundred[task]["train"])
        assert len(set(others[task]["train"]) & set(hundred[task]["train"])) < 20
        # From the whole of the task, and not from its beginning.
        assert len({10 * places[pair] // len(places) for pair in hundred[task]["train"]}) == 10
    assert len(read(10**9)["dates"]["train"]) == len(whole["dates"]["train"])
