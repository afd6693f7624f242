import gzip
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathways_lm.config import DataConfig
from pathways_lm.data import sources
from pathways_lm.data.sources import Document
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


def test_json_lines(tmp_path):
    (tmp_path / "b.jsonl").write_text('{"text": "one\\n", "id": 1}\n\n{"text": ""}\n{"text": "two"}')
    (tmp_path / "a.json.gz").write_bytes(gzip.compress('{"text": "é"}\r\n'.encode()))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.jsonl.gz").write_bytes(gzip.compress(b'{"text": "three"}'))
    documents = sources.files(f"{tmp_path}/**/*.json*", "text")
    assert documents == [
        Document("a.json.gz", "é"),
        Document("b.jsonl", "one\n"),
        Document("b.jsonl", "two", 1),
        Document("sub/c.jsonl.gz", "three"),
    ]


def test_other_key(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "one"}')
    assert sources.files(f"{tmp_path}/a.jsonl", "body") == [Document("a.jsonl", "one")]


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("one")
    assert sources.files("~/*.txt", "text") == [Document("a.txt", "one")]


def test_names_do_not_depend_on_where_the_corpus_lies(tmp_path, monkeypatch):
    (tmp_path / "here" / "sub").mkdir(parents=True)
    (tmp_path / "here" / "sub" / "a.txt").write_text("one")
    absolute = sources.files(f"{tmp_path}/here/**/*.txt", "text")
    monkeypatch.chdir(tmp_path / "here")
    assert absolute == sources.files("**/*.txt", "text") == [Document("sub/a.txt", "one")]


@given(st.text("ab\r\n\u2028", min_size=1).map(lambda text: text * 200), st.booleans())
def test_text_is_cut_at_line_ends_and_kept(tmp_path_factory, text, packed):
    path = tmp_path_factory.mktemp("text") / ("a.txt.gz" if packed else "a.txt")
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    documents = sources.files(str(path), "text")
    assert "".join(document.text for document in documents) == text
    assert [document.part for document in documents] == list(range(len(documents)))
    assert all(document.text.endswith("\n") for document in documents[:-1])


def test_parts_are_a_fiftieth_up_to_64_kb(tmp_path):
    for megabytes, parts in ((1, 50), (8, 123)):
        (tmp_path / "a.txt").write_text("x" * 99 + "\n")
        (tmp_path / "a.txt").write_text(("x" * 99 + "\n") * 10_000 * megabytes)
        documents = sources.files(f"{tmp_path}/a.txt", "text")
        assert abs(len(documents) - parts) <= 1
        assert max(len(document.text) for document in documents) < 66_000


def failing(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        sources.files(str(path), "text")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message.removeprefix(str(path))


def test_no_file_matches(tmp_path):
    with pytest.raises(DataError, match=rf"^data.files='{tmp_path}/\*.txt' matches no file$"):
        sources.files(f"{tmp_path}/*.txt", "text")


@pytest.mark.parametrize(
    ("name", "data"),
    [("a.txt", b""), ("a.jsonl", b""), ("a.jsonl", b'\n{"text": ""}\n'), ("a.gz", gzip.compress(b"", mtime=0))],
)
def test_empty_file(tmp_path, name, data):
    assert failing(tmp_path, name, data) == ": holds no text"


def test_not_utf8(tmp_path):
    assert (
        failing(tmp_path, "a.txt", b"one\ntwo\nth\xe9ee\n")
        == ", line 3: not UTF-8 text (invalid continuation byte: 0xe9)"
    )
    assert (
        failing(tmp_path, "a.jsonl", b'{"text": "one"}\n{"text": "\xff"}')
        == ", line 2: not UTF-8 text (invalid start byte: 0xff)"
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "two', "not JSON: Unterminated string starting at: line 1 column 10 (char 9)"),
        ("[" * 100_000, "not JSON: "),
        ('["two"]', """must be a JSON object with key 'text', not '["two"]'"""),
        ('{"txt": "two"}', "has no key 'text' (data.text_key); did you mean 'txt'?"),
        ('{"a": 1, "b": 2}', "has no key 'text' (data.text_key); known: a, b"),
        ('{"text": 2}', "'text' must be text, not int"),
        ('{"text": null}', "'text' must be text, not NoneType"),
        ('{"text": "\\ud83d"}', "'text' holds half of a surrogate pair, which is not a character"),
    ],
)
def test_bad_line(tmp_path, line, message):
    assert failing(tmp_path, "a.jsonl", f'{{"text": "one"}}\n{line}\n'.encode()).startswith(f", line 2: {message}")


def test_damaged_gz(tmp_path):
    whole = gzip.compress(b"some text " * 1_000)
    assert failing(tmp_path, "a.gz", b"no gz") == ": cannot be read: Not a gzipped file (b'no')"
    assert failing(tmp_path, "b.gz", whole[:-12]).startswith(": cannot be read: Compressed file ended")
    assert failing(tmp_path, "c.gz", whole[:15] + b"\xff" * 5 + whole[20:]).startswith(": cannot be read: ")


def test_unreadable(tmp_path, monkeypatch):
    """Tests may run as root, who can read all: the refusal is made here."""
    path = tmp_path / "a.txt"
    path.write_text("one")

    def refuse(name, *_):
        raise PermissionError(13, os.strerror(13), name)

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(DataError, match=r"a.txt: cannot be read: Permission denied$"):
        sources.files(str(path), "text")
