"""Whole words: by hand, and of a real vocabulary."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pathways_lm.config import DataConfig
from pathways_lm.data.objectives import make_objective
from pathways_lm.data.objectives.masked import masked, word_starts

TEXT = "The try_statement, unlike 2 others' xyzzyx: naïve 数据 12 ok.\n    def __init__(self): pass"


def test_words_by_hand(vocabulary):
    """Letters, digits, underscores and what is spelled in bytes hold together; all else stands alone."""
    tokens = np.array(vocabulary.encode(TEXT))
    starts = np.append(np.flatnonzero(word_starts(tokens, vocabulary.word_edges)), len(tokens))
    words = [vocabulary.decode(tokens[a:b].tolist()).strip(" ") for a, b in pairwise(starts)]
    found = [word for word in words if word]
    for whole in (
        "The",
        "try_statement",
        "unlike",
        "2",
        "others",
        "xyzzyx",
        "naïve",
        "数据",
        "12",
        "ok",
        "__init__",
        "self",
    ):
        assert whole in found
    assert "".join(vocabulary.decode(tokens[a:b].tolist()) for a, b in pairwise(starts)) == TEXT


def test_edges_by_hand(vocabulary):
    begins, ends = vocabulary.word_edges
    (space,), (comma,) = vocabulary.encode(" "), vocabulary.encode(",")
    assert not begins[space] and not ends[space] and not begins[comma] and not ends[comma]
    the = vocabulary.encode(" the")
    assert len(the) == 1 and not begins[the[0]] and ends[the[0]]
    assert not begins[vocabulary.eod_id] and not ends[vocabulary.eod_id]
    assert begins.shape == ends.shape == (vocabulary.size,)


class Pieces:
    size, eod_id = 50, 9
    # 10 to 29 begin words, 30 to 49 go on with them; all others stand alone.
    word_edges = (np.arange(50) >= 30, np.arange(50) >= 10)


@given(st.lists(st.integers(1, 6), min_size=10, max_size=60), st.integers(0, 1000))
def test_whole_words_are_whole(sizes, seed):
    """Either all of a word's tokens are asked for or none; no more than 15% are, and not less by a whole short word."""
    rng = np.random.default_rng(seed)
    words = [[int(rng.integers(10, 30)), *rng.integers(30, 50, size - 1).tolist()] for size in sizes]
    row = np.array([[token for word in words for token in word]], np.int32)
    batch = masked(row, 9, 50, [np.random.default_rng(seed)], Pieces.word_edges)
    asked = batch.targets[0] != 0
    np.testing.assert_array_equal(batch.targets[0][asked], row[0][asked])
    np.testing.assert_array_equal(batch.tokens[0][~asked], row[0][~asked])
    bounds = np.cumsum([0, *sizes])
    of_words = [asked[a:b] for a, b in pairwise(bounds)]
    assert all(part.all() or not part.any() for part in of_words)
    wanted = round(0.15 * row.size)
    left = [len(part) for part in of_words if not part.any()]
    assert asked.sum() <= wanted
    assert asked.sum() == wanted or min(left) > wanted - asked.sum()


def test_the_field_turns_it_on():
    rows = np.tile(np.array([[10, 30, 31, 32, 11, 30, 12, 13, 33, 34]], np.int32), (200, 5))
    starts = (rows[0] < 30).nonzero()[0]

    def broken_words(whole_words: bool) -> int:
        config = DataConfig(objective="masked", whole_words=whole_words, extra_ids=1, sequence_length=50)
        asked = make_objective(config, Pieces())(rows, range(200)).targets != 0
        parts = np.add.reduceat(asked, starts, axis=1)
        sizes = np.diff([*starts, 50])
        return int(((parts > 0) & (parts < sizes)).sum())

    assert broken_words(True) == 0 < broken_words(False)
