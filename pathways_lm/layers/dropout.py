"""Dropout that is the same on every mesh."""

import jax
import jax.numpy as jnp
from jax import Array


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Zeros a share `rate` of `x` and scales the rest by 1 / (1 - rate). Without a key, in evaluation, gives `x`.

    The key is a plain argument: a scanned layer is given its own, and a recomputed one draws the same again.
    """
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape, out_sharding=jax.typeof(x).sharding)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def site(key: Array | None, number: int) -> Array | None:
    """The key of one of several places in a layer that drop or draw."""
    return None if key is None else jax.random.fold_in(key, number)
