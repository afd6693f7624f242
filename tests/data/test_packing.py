import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pathways_lm.data.packing import pack

DOCUMENTS = st.lists(st.lists(st.integers(2, 99), max_size=40).map(lambda tokens: [*tokens, 1]), max_size=12)


def test_by_hand():
    documents = [[5, 6, 1], [7, 1], [8, 9, 10, 11, 12, 13, 1]]
    rows = [[5, 6, 1, 7, 1], [8, 9, 10, 11, 12]]
    assert [row.tolist() for row in pack(documents, 5, keep_tail=False)] == rows
    assert [row.tolist() for row in pack(documents, 5, keep_tail=True)] == [*rows, [13, 1, 0, 0, 0]]


def test_nothing_gives_nothing():
    assert list(pack([], 4, keep_tail=True)) == []


def test_less_than_a_sequence():
    assert list(pack([[5, 1]], 4, keep_tail=False)) == []
    assert [row.tolist() for row in pack([[5, 1]], 4, keep_tail=True)] == [[5, 1, 0, 0]]


@given(DOCUMENTS, st.integers(1, 17))
def test_training_is_the_whole_sequences_of_one_long_stream(documents, length):
    stream = np.array([token for document in documents for token in document], np.int32)
    expected = stream[: len(stream) // length * length].reshape(-1, length)
    rows = list(pack(documents, length, keep_tail=False))
    assert all(row.dtype == np.int32 and row.shape == (length,) for row in rows)
    np.testing.assert_array_equal(np.reshape(rows, (-1, length)), expected)


@given(DOCUMENTS, st.integers(1, 17))
def test_validation_holds_every_token_once(documents, length):
    stream = [token for document in documents for token in document]
    rows = list(pack(documents, length, keep_tail=True))
    assert all(row.shape == (length,) for row in rows)
    assert [token for row in rows for token in row.tolist() if token] == stream
    assert sum(row.size for row in rows) - len(stream) < length
