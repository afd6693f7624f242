"""Dropout that is the same on every mesh."""

import jax
import jax.numpy as jnp
from jax import Array

from pathways_lm.sharding import Rules


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Zeros a share `rate` of `x` and scales the rest by 1 / (1 - rate). Without a key, in evaluation, gives `x`.

    The key is a plain argument: a scanned layer is given its own, and a recomputed one draws the same again.
    """
    if key is None or rate == 0:
        return x
    return _kept(x, jax.random.bernoulli(key, 1 - rate, x.shape, out_sharding=jax.typeof(x).sharding), rate)


def weights_dropout(weights_BKTGS: Array, rate: float, key: Array | None, rules: Rules) -> Array:
    """Dropout of attention weights, drawn by query head: how those are grouped, K and G, depends on the mesh."""
    if key is None or rate == 0:
        return weights_BKTGS
    B, K, T, G, S = weights_BKTGS.shape
    heads = "heads" if K > 1 else None
    keep_BNTS = jax.random.bernoulli(key, 1 - rate, (B, K * G, T, S), out_sharding=rules("batch", heads, None, None))
    keep_BKGTS = jnp.reshape(keep_BNTS, (B, K, G, T, S), out_sharding=rules("batch", heads, None, None, None))
    return _kept(weights_BKTGS, jnp.swapaxes(keep_BKGTS, 2, 3), rate)


def _kept(x: Array, keep: Array, rate: float) -> Array:
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def site(key: Array | None, number: int) -> Array | None:
    """The key of one of several places in a layer that drop or draw."""
    return None if key is None else jax.random.fold_in(key, number)
