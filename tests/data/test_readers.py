import gzip
import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathways_lm.config import DataConfig
from pathways_lm.data import readers
from pathways_lm.data.examples import Document, Pair
from pathways_lm.errors import DataError


def read(pattern, **changes):
    """The training examples of `pattern`."""
    splits = readers.read(DataConfig(files=str(pattern), **changes))
    assert list(splits) == ["train"]
    return splits["train"]


def test_json_lines(tmp_path):
    (tmp_path / "b.jsonl").write_text('{"text": "one\\n", "id": 1}\n\n{"text": ""}\n{"text": "two"}')
    (tmp_path / "a.json.gz").write_bytes(gzip.compress('{"text": "é"}\r\n'.encode()))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.jsonl.gz").write_bytes(gzip.compress(b'{"text": "three"}'))
    documents = read(f"{tmp_path}/**/*.json*")
    assert documents == [
        Document("a.json.gz", "é"),
        Document("b.jsonl", "one\n"),
        Document("b.jsonl", "two", 1),
        Document("sub/c.jsonl.gz", "three"),
    ]


def test_other_key(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "one"}')
    assert read(f"{tmp_path}/a.jsonl", text_key="body") == [Document("a.jsonl", "one")]


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("one")
    assert read("~/*.txt") == [Document("a.txt", "one")]


def test_names_do_not_depend_on_where_the_corpus_lies(tmp_path, monkeypatch):
    (tmp_path / "here" / "sub").mkdir(parents=True)
    (tmp_path / "here" / "sub" / "a.txt").write_text("one")
    absolute = read(f"{tmp_path}/here/**/*.txt")
    monkeypatch.chdir(tmp_path / "here")
    assert absolute == read("**/*.txt") == [Document("sub/a.txt", "one")]


@given(st.text("ab\r\n\u2028", min_size=1).map(lambda text: text * 200), st.booleans())
def test_text_is_cut_at_line_ends_and_kept(tmp_path_factory, text, packed):
    path = tmp_path_factory.mktemp("text") / ("a.txt.gz" if packed else "a.txt")
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    documents = read(str(path))
    assert "".join(document.text for document in documents) == text
    assert [document.part for document in documents] == list(range(len(documents)))
    assert all(document.text.endswith("\n") for document in documents[:-1])


def test_parts_are_a_fiftieth_up_to_64_kb(tmp_path):
    for megabytes, parts in ((1, 50), (8, 123)):
        (tmp_path / "a.txt").write_text("x" * 99 + "\n")
        (tmp_path / "a.txt").write_text(("x" * 99 + "\n") * 10_000 * megabytes)
        documents = read(f"{tmp_path}/a.txt")
        assert abs(len(documents) - parts) <= 1
        assert max(len(document.text) for document in documents) < 66_000


def failing(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        read(str(path))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message.removeprefix(str(path))


def test_no_file_matches(tmp_path):
    with pytest.raises(DataError, match=rf"^data.files='{tmp_path}/\*.txt' matches no file$"):
        read(f"{tmp_path}/*.txt")


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
        read(str(path))


ROWS = [{"text": "one\n", "q": "1 + 1", "a": "2"}, {"text": "é", "q": "x", "a": "y"}, {"text": "", "q": "", "a": "z"}]
DOCUMENTS = ["one\n", "é"]
PAIRS = [("1 + 1", "2"), ("x", "y")]
PAIR_FIELDS = {"objective": "text_to_text", "inputs_key": "q", "targets_key": "a"}


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_parquet(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=1)


def write_arrow_stream(path, rows):
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=1)


def write_arrow_file(path, rows):
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=1)


def write_tfrecord(path, rows):
    from pathways_lm.data.quiet_tensorflow import tf

    def feature(value):
        if isinstance(value, int):
            return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value.encode()]))

    options = tf.io.TFRecordOptions(compression_type="GZIP" if path.name.endswith(".gz") else "")
    with tf.io.TFRecordWriter(str(path), options) as writer:
        for row in rows:
            features = tf.train.Features(feature={key: feature(value) for key, value in row.items()})
            writer.write(tf.train.Example(features=features).SerializeToString())


WRITERS = {
    "a.jsonl": write_jsonl,
    "a.parquet": write_parquet,
    "a.arrow": write_arrow_stream,
    "b.arrow": write_arrow_file,
    "a.tfrecord": write_tfrecord,
    "a.tfrecord.gz": write_tfrecord,
    "a.tfrecord-00000-of-00001": write_tfrecord,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_form_holds_documents_and_pairs(tmp_path, name):
    WRITERS[name](tmp_path / name, ROWS)
    assert read(tmp_path / name) == [Document(name, text, part) for part, text in enumerate(DOCUMENTS)]
    assert read(tmp_path / name, **PAIR_FIELDS) == [Pair(name, *texts, part) for part, texts in enumerate(PAIRS)]


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text_key": "txt"}, r"has no key 'txt' \(data.text_key\); did you mean 'text'\?"),
        ({**PAIR_FIELDS, "targets_key": "answer"}, r"has no key 'answer' \(data.targets_key\); known: a, q, text"),
        ({**PAIR_FIELDS, "inputs_key": "question"}, r"has no key 'question' \(data.inputs_key\); known: a, q, text"),
    ],
)
def test_missing_key(tmp_path, name, fields, message):
    WRITERS[name](tmp_path / name, ROWS)
    where = {"jsonl": ", line 1", "parquet": "", "arrow": ""}.get(name.split(".")[1], ", record 1")
    with pytest.raises(DataError, match=rf"^{tmp_path}/{name}{where}: {message}$"):
        read(tmp_path / name, **fields)


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_no_text(tmp_path, name):
    WRITERS[name](tmp_path / name, [{"text": 3}])
    where = {"jsonl": "line", "parquet": "row", "arrow": "row"}.get(name.split(".")[1], "record")
    with pytest.raises(DataError, match=rf"^{tmp_path}/{name}, {where} 1: 'text' must be text, not int$"):
        read(tmp_path / name)


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "a.jsonl"])
def test_damaged(tmp_path, name):
    WRITERS[name](tmp_path / name, ROWS)
    whole = (tmp_path / name).read_bytes()
    for damaged in (whole[: len(whole) // 2], b"junk that is no such file " * 9):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(DataError, match=rf"^{tmp_path}/{name}(, record \d)?: cannot be read: [^\n]+$"):
            read(tmp_path / name)


def test_a_text_file_holds_no_pairs(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    with pytest.raises(DataError, match=rf"^{tmp_path}/a.txt: a text file holds no pairs; use JSON lines, Parquet or"):
        read(tmp_path / "a.txt", objective="text_to_text")


@pytest.mark.parametrize(("suffix", "write"), [("parquet", write_parquet), ("jsonl", write_jsonl)])
def test_hugging_face_folder(tmp_path, suffix, write):
    """Shards by split, those for testing left alone; also a folder for each split."""
    data = tmp_path / "data"
    data.mkdir()
    for name, text in (
        ("train-00000-of-00002", "a"),
        ("train-00001-of-00002", "b"),
        ("validation-00000-of-00001", "c"),
    ):
        write(data / f"{name}.{suffix}", [{"text": text}])
    write(data / f"test-00000-of-00001.{suffix}", [{"text": "d"}])
    (tmp_path / "README.md").write_text("about it")
    splits = readers.read(DataConfig(files=str(tmp_path)))
    assert {split: [document.text for document in found] for split, found in splits.items()} == {
        "train": ["a", "b"],
        "validation": ["c"],
    }
    assert [document.name for document in splits["train"]] == [f"train-0000{i}-of-00002.{suffix}" for i in (0, 1)]
    (tmp_path / "saved" / "train").mkdir(parents=True)
    write(tmp_path / "saved" / "train" / f"data-00000-of-00001.{suffix}", [{"text": "e"}])
    assert [document.text for document in read(tmp_path / "saved")] == ["e"]


def test_folder_without_training_data(tmp_path):
    write_jsonl(tmp_path / "test.jsonl", ROWS)
    message = rf"^data.files='{tmp_path}' is a folder without a training split: it holds only test; name them train-"
    with pytest.raises(DataError, match=message):
        read(tmp_path)
    (tmp_path / "test.jsonl").unlink()
    with pytest.raises(DataError, match="it holds no such files"):
        read(tmp_path)


def test_tfds_folder(tmp_path, write_tfds):
    from pathways_lm.data.quiet_tensorflow import tfds

    folder = tmp_path / "things" / "small" / "1.0.0"
    features = {"text": tfds.features.Text(), "q": tfds.features.Text(), "a": tfds.features.Text()}
    write_tfds(folder, features, {"train": ROWS, "validation": ROWS[1:2], "test": ROWS})
    splits = readers.read(DataConfig(files=str(folder)))
    assert {split: [document.text for document in found] for split, found in splits.items()} == {
        "train": DOCUMENTS,
        "validation": ["é"],
    }
    pairs = readers.read(DataConfig(files=str(folder), **PAIR_FIELDS))["train"]
    assert [pair.texts for pair in pairs] == PAIRS
    message = rf"^{folder}, split 'train', record 1: has no key 'txt' \(data.text_key\); did you mean 'text'\?$"
    with pytest.raises(DataError, match=message):
        readers.read(DataConfig(files=str(folder), text_key="txt"))


def test_reading_text_needs_no_tensorflow(tmp_path):
    """Nor pyarrow: what needs them imports them."""
    (tmp_path / "a.txt").write_text("one")
    program = (
        "import sys; from pathways_lm.config import DataConfig; from pathways_lm.data import sources, readers;"
        f"readers.read(DataConfig(files={str(tmp_path / 'a.txt')!r}));"
        "print([name for name in ('tensorflow', 'seqio', 'pyarrow', 'babel') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
