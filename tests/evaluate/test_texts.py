"""Perplexities against formulas, WikiText's form against lm-evaluation-harness, and files that cannot be read."""

import math

import numpy as np
import pytest

from pathways_lm.errors import DataError
from pathways_lm.evaluate.lambada import lambada, last_word
from pathways_lm.evaluate.records import documents, json_lines, passages
from pathways_lm.evaluate.scoring import Scored
from pathways_lm.evaluate.texts import adjusted_perplexity, count_words, detokenized, likelihoods, perplexities

WIKITEXT = (
    " \n = Robert Boulter = \n \n = = Career = = \n \n Robert Boulter is an English film , television and"
    " theatre actor ;"
    ' he had a guest @-@ starring role : " Herons " ( 2001 , Royal Court Theatre ) . \n The cars \' drivers [ sic ] ran'
    " 1 @,@ 500 m at 3 @.@ 5 ° C ! Did n't they ? It was the actors ' and the team 's N 1 . , end \n"
)


def test_wikitext_put_together():
    harness = pytest.importorskip("lm_eval.tasks.wikitext.preprocess_wikitext")
    assert detokenized(WIKITEXT) == harness.wikitext_detokenizer({"page": WIKITEXT})
    assert "guest-starring role:" in detokenized(WIKITEXT)
    assert "(2001, Royal Court Theatre)." in detokenized(WIKITEXT)


def test_wikitext_is_measured_in_its_own_words(scripted, vocabulary):
    """exp(nll / original words): half a nat for each token of the text put together."""
    harness = pytest.importorskip("lm_eval.tasks.wikitext.preprocess_wikitext")
    trained = scripted()
    trained.score = lambda window: Scored(np.full(len(window.said), -0.5, np.float32), np.ones(len(window.said), bool))
    page = detokenized(WIKITEXT)
    total = -0.5 * len(vocabulary.encode(page))
    _, words = harness.process_results({"page": WIKITEXT}, [total])["word_perplexity"]
    _, size = harness.process_results({"page": WIKITEXT}, [total])["bits_per_byte"]
    found = perplexities(likelihoods(trained, [page], [WIKITEXT]))
    expected = {
        "loss": 0.5,
        "perplexity": math.exp(0.5),
        "word_perplexity": math.exp(-total / words),
        "byte_perplexity": math.exp(-total / size),
        "bits_per_byte": -total / size / math.log(2),
    }
    assert found == pytest.approx(expected)
    # Megatron-LM's: words, and the line ends between them.
    own = len(WIKITEXT.split()) + WIKITEXT.strip().count("\n")
    adjusted = adjusted_perplexity(likelihoods(trained, [page], [WIKITEXT]), [WIKITEXT])
    assert adjusted == pytest.approx(math.exp(-total / own))
    # Two texts: sums are divided once.
    pair = likelihoods(trained, [page, "x"], [WIKITEXT, "x"])
    tokens = len(vocabulary.encode(page)) + 1
    assert perplexities(pair)["word_perplexity"] == pytest.approx(math.exp(0.5 * tokens / (words + 1)))


def test_words():
    assert [count_words(text) for text in ("a b\n c", "a", " a ")] == [3, 1, 3]


def test_last_words(scripted, vocabulary):
    """A word is right when every one of its tokens is; perplexity is per word."""
    trained = scripted()
    wrong = vocabulary.encode(" xylophone")[-1]

    def score(window):
        greedy = np.array([token != wrong for token in window.said])
        return Scored(np.full(len(window.said), -1.0), greedy)

    trained.score = score
    found = lambada(trained, [("line 1", "a b the"), ("line 2", "he played the xylophone")])
    tokens = len(vocabulary.encode(" the")) + len(vocabulary.encode(" xylophone"))
    assert found == {"accuracy": 0.5, "perplexity": pytest.approx(math.exp(tokens / 2)), "passages": 2}
    assert last_word("to be or  not", "x") == ("to be or ", " not")


@pytest.mark.parametrize("passage", ["word", "two ", " word", ""])
def test_no_last_word(passage):
    with pytest.raises(DataError, match=r"x, line 3: a passage must be several words"):
        last_word(passage, "x, line 3")


def test_too_long_a_passage(scripted):
    trained = scripted(context=8)
    with pytest.raises(
        DataError, match=r"x, line 1: .* tokens are more than the context of 8 holds; --truncate leaves"
    ):
        lambada(trained, [("x, line 1", "word " * 20 + "end")])
    seen = []
    trained.score = lambda window: seen.append(window) or Scored(np.zeros(len(window.said)), np.zeros(1, bool))
    lambada(trained, [("x, line 1", "word " * 20 + "end")], cut=True)
    assert len(seen[0].read) + len(seen[0].said) == 9


def test_files(tmp_path, write_records):
    path = write_records(tmp_path / "a.jsonl", [{"text": "one"}, {"text": "two é", "x": 1}])
    assert documents(path) == passages(path) == [(f"{path}, line 1", "one"), (f"{path}, line 2", "two é")]
    text = tmp_path / "b.txt"
    text.write_bytes(b"one \r\n\n two\n")
    assert documents(str(text)) == [(str(text), "one \r\n\n two\n")]
    assert passages(str(text)) == [(f"{text}, line 1", "one "), (f"{text}, line 3", " two")]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"text": "a"}\n\n{"text": 3}\n', ", line 3: 'text' must be text, not int"),
        (b'{"text": "a"}\n{"txt": "b"}\n', ", line 2: has no field 'text'; did you mean 'txt'?"),
        (b'{"text": "a"}\n{"text": \n', ", line 2: not JSON: "),
        (b'{"text": "a"}\n["b"]\n', ", line 2: must be a JSON object, not '[\"b\"]'"),
        (b'{"text": "a"}\n{"text": "\xff"}\n', ", line 2: not UTF-8 text (invalid start byte: 0xff)"),
        (b'{"text": "\\ud800"}\n', ", line 1: 'text' holds half of a surrogate pair"),
        (b'{"text": ""}\n', ", line 1: holds no text"),
        (b"\n  \n", ": holds no text"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, data, message):
    path = tmp_path / "x.jsonl"
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        documents(str(path))
    assert str(caught.value).startswith(f"{path}{message}")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"none.jsonl: cannot be read: No such file or directory"):
        json_lines(f"{tmp_path}/none.jsonl")
