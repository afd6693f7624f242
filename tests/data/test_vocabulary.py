import io
from pydoc_data.topics import topics

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pathways_lm.data.vocabulary import Vocabulary, load_vocabulary, train_vocabulary
from pathways_lm.errors import DataError

# What SentencePiece gives a meaning of its own, and what normalisers change.
TRAPS = [
    "\u2581",
    "\u2585",
    "\u2047",
    "<s>",
    "</s>",
    "<unk>",
    "<pad>",
    "<eod>",
    "<0x0A>",
    "<0xE2>",
    "\x00",
    "\r\n",
    "\t",
]
TRAPS += [
    "  ",
    " ",
    "\u00a0",
    "\u3000",
    "\ufeff",
    "\ufb01",
    "e\u0301",
    "\u0085",
    "\u2028",
    "\U0001f600",
    "7",
    "def ",
    "\n\n\n",
]
TEXTS = st.one_of(st.text(), st.lists(st.one_of(st.sampled_from(TRAPS), st.text(max_size=3))).map("".join))


@given(TEXTS)
@example("".join(TRAPS))
@example("")
def test_round_trip_loses_nothing(vocabulary, text):
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids) == text
    assert vocabulary.decode_bytes(ids) == text.encode()
    assert not {0, vocabulary.eod_id, vocabulary.unk_id}.intersection(ids)


@given(st.text("0123456789 ab.\n"))
def test_every_digit_is_a_token(vocabulary, text):
    pieces = [vocabulary.decode([token]) for token in vocabulary.encode(text)]
    assert [piece for piece in pieces if any(map(str.isdigit, piece))] == [
        character for character in text if character.isdigit()
    ]


def test_no_piece_joins_digits(vocabulary):
    pieces = [vocabulary.decode_bytes([token]) for token in range(vocabulary.size)]
    assert not [piece for piece in pieces if len(piece) > 1 and any(digit in piece for digit in b"0123456789")]


def test_runs_of_spaces_and_line_ends_are_pieces(vocabulary):
    pieces = {vocabulary.decode([token]) for token in range(vocabulary.size)}
    assert {"\n", "\n\n", " ", "  ", "    "} <= pieces
    assert len(vocabulary.encode("    ")) == 1


def test_special_tokens_are_no_text(vocabulary):
    assert vocabulary.eod_id == 1
    assert vocabulary.decode([0, 1, 2, *vocabulary.encode("ab"), vocabulary.size, 10**6, -1]) == "ab"


def test_stream_waits_for_whole_characters(vocabulary):
    ids = vocabulary.encode("a\U0001f600b")
    assert list(vocabulary.stream(ids)) == ["a", "", "", "", "\U0001f600", "b"]
    assert vocabulary.decode(ids[:3]) == "a"


@given(TEXTS)
def test_stream_adds_up(vocabulary, text):
    assert "".join(vocabulary.stream(vocabulary.encode(text))) == text


def test_stream_replaces_what_is_no_utf8(vocabulary):
    [tail] = vocabulary.encode("\x80".encode().decode())[1:]  # 0xC2 0x80: the second byte alone is no character
    assert vocabulary.decode([*vocabulary.encode("a"), tail, *vocabulary.encode("b")]) == "a\ufffdb"


def test_training_is_deterministic(vocabulary):
    model = train_vocabulary([topics[name] for name in sorted(topics)[:30]], 512)
    assert Vocabulary(model).fingerprint == vocabulary.fingerprint
    assert vocabulary.size == 512


def test_a_small_corpus_gives_fewer_pieces():
    vocabulary = Vocabulary(train_vocabulary(["abc def " * 50], 4096))
    assert 260 < vocabulary.size < 400
    assert vocabulary.decode(vocabulary.encode("xyz 123")) == "xyz 123"


@settings(max_examples=10, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=1), st.integers(260, 330))
def test_any_corpus_and_size_gives_a_lossless_vocabulary(texts, size):
    texts.append("some words that are always there\n")
    vocabulary = Vocabulary(train_vocabulary(texts, size))
    assert vocabulary.size <= size
    assert [vocabulary.decode(vocabulary.encode(text)) for text in texts] == texts


def test_more_letters_than_pieces():
    chinese = "".join(chr(0x4E00 + i) for i in range(2_000))
    vocabulary = Vocabulary(train_vocabulary([chinese], 300))
    assert vocabulary.size <= 300
    assert vocabulary.decode(vocabulary.encode(chinese + " a b")) == chinese + " a b"


@pytest.mark.parametrize("text", ["", "\x00", "\u2581"])
def test_no_text_to_learn_from(text):
    with pytest.raises(
        DataError, match=r"^the corpus holds too little text to learn a vocabulary from \(model.vocab_size=300\)$"
    ):
        train_vocabulary([text], 300)


LOSSLESS = {
    "model_type": "bpe",
    "vocab_size": 300,
    "normalization_rule_name": "identity",
    "add_dummy_prefix": False,
    "remove_extra_whitespaces": False,
    "byte_fallback": True,
    "pad_id": 0,
    "eos_id": 1,
    "unk_id": 2,
    "bos_id": -1,
    "hard_vocab_limit": False,
    "minloglevel": 4,
}


def model_file(folder, **options):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a corpus of some words "] * 5), model_writer=model, **{**LOSSLESS, **options}
    )
    path = folder / "some.model"
    path.write_bytes(model.getvalue())
    return path


def test_load(tmp_path):
    vocabulary = load_vocabulary(str(model_file(tmp_path)), 300)
    assert vocabulary.decode(vocabulary.encode("a corpus\n")) == "a corpus\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pad_id": -1, "eos_id": 0}, r"has padding id -1; it must be 0 \(train it with pad_id=0\)$"),
        ({"eos_id": -1, "unk_id": 1}, r"has no end-of-document token \(train it with eos_id=1\)$"),
        ({"normalization_rule_name": "nmt_nfkc"}, r"does not keep text exactly \(train it with"),
        ({"add_dummy_prefix": True}, r"does not keep text exactly \(train it with"),
        ({"remove_extra_whitespaces": True}, r"does not keep text exactly \(train it with"),
        ({"byte_fallback": False, "vocab_size": 30}, r"does not keep text exactly \(train it with"),
    ],
)
def test_load_refuses(tmp_path, options, message):
    path = model_file(tmp_path, **options)
    with pytest.raises(DataError, match=rf"^data.vocabulary='{path}' {message}"):
        load_vocabulary(str(path), 300)


def test_load_refuses_more_pieces_than_rows(tmp_path):
    path = model_file(tmp_path)
    size = Vocabulary(path.read_bytes()).size
    with pytest.raises(
        DataError, match=rf"has {size} pieces, more than model.vocab_size=260; set model.vocab_size={size}"
    ):
        load_vocabulary(str(path), 260)


def test_load_refuses_what_is_no_model(tmp_path):
    with pytest.raises(DataError, match=r"^data.vocabulary='.*none.model' cannot be read: No such file"):
        load_vocabulary(str(tmp_path / "none.model"), 300)
    (tmp_path / "junk.model").write_bytes(b"junk\n")
    with pytest.raises(DataError, match=r"^data.vocabulary='.*junk.model' is not a SentencePiece model$"):
        load_vocabulary(str(tmp_path / "junk.model"), 300)
