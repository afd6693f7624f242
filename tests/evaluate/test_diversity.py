"""Repetition and overlap, counted by hand."""

import numpy as np
import pytest
import sacrebleu

from pathways_lm.data.cache import Corpus
from pathways_lm.data.manifest import Counts, Shard
from pathways_lm.data.shards import write_rows
from pathways_lm.errors import DataError
from pathways_lm.evaluate.contamination import GPT3, PALM, Overlap, overlaps, training_texts
from pathways_lm.evaluate.diversity import distinct, repetition, self_bleu


def test_distinct():
    """Of a b, b a, a b; and of c d, d e: four of five are different."""
    assert distinct(["a b a b", "c d e"], 2) == pytest.approx(100 * 4 / 5)
    assert distinct(["a b c d"], 4) == 100
    assert distinct(["a b", "b a"], 1) == 50
    assert distinct(["abab"], 2, list) == pytest.approx(100 * 2 / 3)
    with pytest.raises(DataError, match="no text has 4 words"):
        distinct(["a b c", ""])


def test_repetition():
    """The share of texts, not of n-grams: one of three says a pair of words twice."""
    assert repetition(["a b a b a b", "a b", "a b c a c b"], 2) == pytest.approx(100 / 3)
    assert repetition(["a b c d e a b c d", "a b c d"]) == 50
    with pytest.raises(DataError, match="there is no text"):
        repetition([])


def test_self_bleu():
    texts = ["the cat sat on the mat", "the cat sat on the hat", "a dog ran to the cat on a mat"]
    assert self_bleu([texts[0]] * 3) == pytest.approx(100)
    assert self_bleu(["a b c d", "e f g h"]) < 10
    # sacrebleu smooths elsewhere, so of texts that share runs of every length.
    long = [texts[0], texts[1]]
    expected = [
        sacrebleu.sentence_bleu(long[i], [long[1 - i]], tokenize="none", smooth_method="none").score for i in (0, 1)
    ]
    assert self_bleu(long) == pytest.approx(np.mean(expected))
    with pytest.raises(DataError, match="two texts or more"):
        self_bleu(["a"])


def test_overlaps():
    """Four 3-grams, of which the corpus has two: across case and marks, within a document, but not across two."""
    corpus = ["He said: “The cat, sat on", "the Mat and more. ON the mat now"]
    found = overlaps(["The cat sat on the mat!", "Unseen words here", "mat AND", "..."], corpus, 3)
    assert found == [Overlap(4, 3), Overlap(1, 0), Overlap(1, 1), Overlap(0, 0)]
    assert [one.contaminated(share) for one in found for share in (0.0, 0.7, 0.8)] == [
        *(True, True, False),
        *(False, False, False),
        *(True, True, True),
        *(False, False, False),
    ]
    with pytest.raises(DataError, match="at least 1"):
        overlaps(["a"], corpus, 0)
    assert (GPT3, PALM) == ((13, 0.0), (8, 0.7))


def test_texts_of_a_packed_corpus(tmp_path, vocabulary):
    """Documents that rows cut come back whole, and what is left at a shard's end goes on in no other."""
    documents = ["the first document, which is longer than a row", "second", "third \u2581 é"]
    ids = [token for text in documents for token in [*vocabulary.encode(text), vocabulary.eod_id]]
    cut = [*ids, *vocabulary.encode("and a fourth")]
    rows = [np.array(cut[start : start + 8], np.int32) for start in range(0, len(cut) - 7, 8)]
    rest = cut[len(ids) : 8 * len(rows)]
    last = np.zeros(8, np.int32)
    last[:2] = [vocabulary.encode("x")[0], vocabulary.eod_id]
    shards = []
    for name, some in (("a", rows), ("b", [last])):
        write_rows(tmp_path / name, some)
        shards.append(Shard(name, "", "", 0, Counts(1, 1, 1, len(some))))
    corpus = Corpus("", tmp_path, vocabulary, 8, {"task": {"train": tuple(shards), "validation": ()}}, {}, {})
    expected = [*documents, *([vocabulary.decode(rest)] if rest else []), "x"]
    assert list(training_texts(corpus)) == expected
