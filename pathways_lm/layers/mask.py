"""Who may look at whom."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class Places(NamedTuple):
    """Where the tokens of a sequence stand. The leading dimension of each may be 1, for all sequences alike."""

    positions_BL: Array
    """int32, counted within a document; -1 is an empty slot, which nobody sees."""
    segments_BL: Array | None = None
    """int32: the document of each token, from 1; 0 is padding. None: all in document 1."""
    prefix_BL: Array | None = None
    """True for tokens that all of their document see, whatever stands before what."""


def in_order(length: int, segments_BL: Array | None = None, prefix_BL: Array | None = None) -> Places:
    """The places of whole sequences: positions count from 0 in each document."""
    index_1L = jnp.arange(length, dtype=jnp.int32)[None]
    if segments_BL is None:
        return Places(index_1L, None, prefix_BL)
    # Padded, not joined with a column of its own: from JAX 0.12 on that column does not lie as the others where there
    # is one row.
    before_BL = jnp.pad(segments_BL[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    start_BL = jax.lax.cummax(jnp.where(segments_BL != before_BL, index_1L, 0), axis=1)
    return Places(index_1L - start_BL, segments_BL, prefix_BL)


def visible(queries: Places, keys: Places, causal: bool, window: int = 0) -> Array:
    """True where a query may look at a key, [B, T, S].

    Only within a document, and for `causal` at itself, what stands before it and the prefix; with a `window`, of itself
    and what stands before only so many.
    """
    seen_BTS = (keys.positions_BL >= 0)[:, None, :]
    if causal:
        near_BTS = keys.positions_BL[:, None, :] <= queries.positions_BL[:, :, None]
        if window:
            near_BTS &= keys.positions_BL[:, None, :] > queries.positions_BL[:, :, None] - window
        if keys.prefix_BL is not None:
            near_BTS = near_BTS | keys.prefix_BL[:, None, :]
        seen_BTS = seen_BTS & near_BTS
    if queries.segments_BL is not None or keys.segments_BL is not None:
        seen_BTS = seen_BTS & (_segments(queries)[:, :, None] == _segments(keys)[:, None, :])
    return seen_BTS


def _segments(places: Places) -> Array:
    return jnp.ones_like(places.positions_BL) if places.segments_BL is None else places.segments_BL
