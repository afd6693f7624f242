"""Dropout that is the same on every mesh."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec, reshard

from pathways_lm.kernels.zigzag import numbers
from pathways_lm.sharding import Rules


def dropout(x_BLD: Array, rate: float, key: Array | None, rules: Rules) -> Array:
    """Zeros a share `rate` of `x` and scales the rest by 1 / (1 - rate). Without a key, in evaluation, gives `x`.

    The key is a plain argument: a scanned layer is given its own, and a recomputed one draws the same again.
    """
    if key is None or rate == 0:
        return x_BLD
    draw = partial(jax.random.bernoulli, p=1 - rate)
    keep_BLD = drawn(draw, key, numbers(x_BLD.shape[1], rules), x_BLD.shape, 1, jax.typeof(x_BLD).sharding)
    return _kept(x_BLD, keep_BLD, rate)


def weights_dropout(weights_BKTGS: Array, rate: float, key: Array | None, rules: Rules) -> Array:
    """Dropout of attention weights, drawn by query head: how those are grouped, K and G, depends on the mesh."""
    if key is None or rate == 0:
        return weights_BKTGS
    B, K, T, G, S = weights_BKTGS.shape
    heads = "heads" if K > 1 else None
    draw = partial(jax.random.bernoulli, p=1 - rate)
    cut = rules("batch", heads, "length", None)
    keep_BNTS = drawn(draw, key, numbers(T, rules), (B, K * G, T, S), 2, cut)
    keep_BKGTS = jnp.reshape(keep_BNTS, (B, K, G, T, S), out_sharding=rules("batch", heads, None, "length", None))
    return _kept(weights_BKTGS, jnp.swapaxes(keep_BKGTS, 2, 3), rate)


def drawn(
    draw: Callable[..., Array], key: Array, numbers: Array, shape: tuple[int, ...], axis: int, cut: NamedSharding
) -> Array:
    """Random numbers of `shape`, cut as told.

    Each index along `axis` draws from a stream of its own, told by its number in `numbers`: so what a token draws does
    not depend on where it lies.
    """
    entries, rest = list(cut.spec), (*shape[:axis], *shape[axis + 1 :])
    along = NamedSharding(cut.mesh, PartitionSpec(entries.pop(axis)))
    out = NamedSharding(cut.mesh, PartitionSpec(*entries))
    keys = jax.vmap(partial(jax.random.fold_in, key))(reshard(numbers, along))
    return jax.vmap(lambda key: draw(key, shape=rest, out_sharding=out), out_axes=axis)(keys)


def _kept(x: Array, keep: Array, rate: float) -> Array:
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def site(key: Array | None, number: int) -> Array | None:
    """The key of one of several places in a layer that drop or draw."""
    return None if key is None else jax.random.fold_in(key, number)
