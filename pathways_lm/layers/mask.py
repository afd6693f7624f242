"""Who may look at whom."""

from jax import Array


def causal(query_positions_BT: Array, key_positions_BS: Array) -> Array:
    """True where a key stands at or before the query, [B, T, S]. A key at position -1 is empty, seen by nobody."""
    queries, keys = query_positions_BT[:, :, None], key_positions_BS[:, None, :]
    return (keys >= 0) & (keys <= queries)
