"""Who sees whom."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pathways_lm.layers.mask import causal


def test_by_hand():
    """Queries at 2 and 3; keys at 0, an empty slot, 3, 2, 7."""
    mask = causal(jnp.array([[2, 3]]), jnp.array([[0, -1, 3, 2, 7]]))
    assert mask.tolist() == [[[True, False, False, True, False], [True, False, True, True, False]]]


places = st.lists(st.integers(-1, 6), min_size=1, max_size=6)


@given(places, places)
def test_every_pair(queries, keys):
    mask = np.asarray(causal(jnp.array([queries, queries]), jnp.array([keys, keys])))
    assert mask.shape == (2, len(queries), len(keys))
    for t, query in enumerate(queries):
        for s, key in enumerate(keys):
            assert mask[1, t, s] == (key in range(query + 1))
