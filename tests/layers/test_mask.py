"""Who sees whom."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pathways_lm.layers.mask import Places, in_order, visible


def test_causal_by_hand():
    """Queries at 2 and 3; keys at 0, an empty slot, 3, 2, 7."""
    mask = visible(Places(jnp.array([[2, 3]])), Places(jnp.array([[0, -1, 3, 2, 7]])), causal=True)
    assert mask.tolist() == [[[True, False, False, True, False], [True, False, True, True, False]]]


# Of every row: another length would be compiled anew.
LENGTH = 12


@st.composite
def rows(draw):
    """Documents one behind the other, then padding, if there is room; each may begin with a prefix."""
    segments, prefix = [], []
    for number, length in enumerate(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)), start=1):
        segments += [number] * length
        split = draw(st.integers(0, length))
        prefix += [True] * split + [False] * (length - split)
    padding = [0] * (LENGTH - len(segments))
    return (segments + padding)[:LENGTH], (prefix + [False] * len(padding))[:LENGTH]


@given(rows(), st.booleans(), st.booleans(), st.integers(0, 5))
def test_every_pair(row, causal, with_prefix, window):
    """No pair of two documents sees one another, whatever else is asked for."""
    segments, prefix = row
    length = len(segments)
    places = in_order(length, jnp.array([segments]), jnp.array([prefix]) if with_prefix else None)
    mask = np.asarray(visible(places, places, causal, window))
    assert mask.shape == (1, length, length)
    for t in range(length):
        for s in range(length):
            near = not causal or (s <= t and (not window or t - s < window)) or (with_prefix and prefix[s])
            assert mask[0, t, s] == (segments[s] == segments[t] and near)


@given(rows())
def test_positions_count_within_a_document(row):
    segments, _ = row
    expected = [segments[: index + 1].count(segment) - 1 for index, segment in enumerate(segments)]
    assert in_order(len(segments), jnp.array([segments])).positions_BL.tolist() == [expected]


def test_looking_at_an_encoder():
    """A decoder's document sees the encoder's of the same number; without segments all but padding is one document."""
    queries, keys = in_order(3, jnp.array([[1, 1, 2]])), in_order(4, jnp.array([[1, 2, 2, 0]]))
    seen = [[1, 0, 0, 0], [1, 0, 0, 0], [0, 1, 1, 0]]
    assert visible(queries, keys, causal=False).astype(int).tolist() == [seen]
    padded = in_order(4, jnp.array([[1, 1, 1, 0]]))
    assert visible(in_order(2), padded, causal=False).astype(int).tolist() == [[[1, 1, 1, 0]] * 2]
