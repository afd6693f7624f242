"""Attention with any number of key and value heads, whose scores are held, or those of a tile where MKL attends."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pathways_lm.kernels.contract import contract, traced_for
from pathways_lm.kernels.mkl import library
from pathways_lm.kernels.mkl.attention import attend
from pathways_lm.sharding import Rules

Parts = tuple[Array | None, Array | None]
"""Keys or values of a cache [B, K, S, H], and those behind them [B, S, K, H]."""


def attention(
    q_BTNH: Array, keys: Parts, values: Parts, mask_BTS: Array, bias_BTSN: Array | None, rules: Rules, scaled: bool
) -> Array:
    """softmax(q k^T / sqrt(H) + bias) v over the keys a query may see, [B, T, N, H], cut along heads.

    The arguments are those of `attention_weights` and `weighted_values`.
    """
    by_mkl = library.multiplies(q_BTNH, keys[1], values[1]) and keys[0] is None and bias_BTSN is None
    if by_mkl and rules.mesh.size == 1 and traced_for(q_BTNH) == "cpu":
        return attend(q_BTNH, keys[1], values[1], mask_BTS, q_BTNH.shape[-1] ** -0.5 if scaled else 1.0)
    return _attention(q_BTNH, keys, values, mask_BTS, bias_BTSN, rules, scaled)


@partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attention(
    q_BTNH: Array, keys: Parts, values: Parts, mask_BTS: Array, bias_BTSN: Array | None, rules: Rules, scaled: bool
) -> Array:
    return _forward(q_BTNH, keys, values, mask_BTS, bias_BTSN, rules, scaled)[0]


class _Kept(NamedTuple):
    q_BTNH: Array
    keys: Parts
    values: Parts
    mask_BTS: Array
    bias_BTSN: Array | None
    weights_BKTGS: Array
    """In the type of the values, as they are multiplied."""
    y_BTNH: Array


def _forward(
    q_BTNH: Array, keys: Parts, values: Parts, mask_BTS: Array, bias_BTSN: Array | None, rules: Rules, scaled: bool
) -> tuple[Array, _Kept]:
    weights_BKTGS = attention_weights(q_BTNH, keys[1], mask_BTS, bias_BTSN, rules, scaled, keys[0])
    weights_BKTGS = weights_BKTGS.astype(q_BTNH.dtype)
    y_BTNH = weighted_values(weights_BKTGS, values[1], rules, values[0])
    return y_BTNH, _Kept(q_BTNH, keys, values, mask_BTS, bias_BTSN, weights_BKTGS, y_BTNH)


def _backward(
    rules: Rules, scaled: bool, kept: _Kept, dy_BTNH: Array
) -> tuple[Array, Parts, Parts, None, Array | None]:
    def score(q_BTNH: Array, keys: Parts, bias_BTSN: Array | None) -> Array:
        return _scores(q_BTNH, keys[1], kept.mask_BTS, bias_BTSN, rules, scaled, keys[0])

    def weigh(weights_BKTGS: Array, values: Parts) -> Array:
        return weighted_values(weights_BKTGS, values[1], rules, values[0])

    dweights_BKTGS, dvalues = jax.vjp(weigh, kept.weights_BKTGS, kept.values)[1](dy_BTNH)
    # The sum over keys of weight x its gradient is that over H of output x its gradient (arXiv:2205.14135, appendix
    # B.2), which is shorter and does not wait for the gradients of the weights.
    inner_BTN = jnp.sum(dy_BTNH.astype(jnp.float32) * kept.y_BTNH.astype(jnp.float32), axis=-1)
    K = kept.weights_BKTGS.shape[1]
    inner_BKTG = jnp.swapaxes(_grouped(inner_BTN[..., None], K, rules)[..., 0], 1, 2)
    dscores_BKTGS = kept.weights_BKTGS * (dweights_BKTGS.astype(jnp.float32) - inner_BKTG[..., None])
    dq_BTNH, dkeys, dbias_BTSN = jax.vjp(score, kept.q_BTNH, kept.keys, kept.bias_BTSN)[1](dscores_BKTGS)
    return dq_BTNH, dkeys, dvalues, None, dbias_BTSN


_attention.defvjp(_forward, _backward)


def attention_weights(
    q_BTNH: Array,
    k_BSKH: Array | None,
    mask_BTS: Array,
    bias_BTSN: Array | None,
    rules: Rules,
    scaled: bool = True,
    cached_BKSH: Array | None = None,
) -> Array:
    """softmax(q k^T / sqrt(H) + bias) over the keys a query may see.

    Args:
      q_BTNH: queries, `N` heads of size `H` at `T` positions, cut along heads.
      k_BSKH: keys of `S` positions, whole along them; each of the `K` heads serves N / K neighbouring query heads.
      mask_BTS: true where a query may look; `B` may be 1 for one mask for all.
      bias_BTSN: added to the scores; `B` may be 1.
      scaled: divide by sqrt(H).
      cached_BKSH: keys of positions before those of `k_BSKH`, or in place of them, as a cache lays them: what a head's
        product reads lies together. They are many, and not put together with the others first.

    Returns:
      fp32 [B, K', T, N / K', S], cut along its second dimension and as the queries along T. K' is K, or the number of
      parts heads are cut into where those are more.

    Source: "Attention Is All You Need" (arXiv:1706.03762), section 3.2; multi-query, arXiv:1911.02150; grouped-query,
    arXiv:2305.13245. With one head of keys the scores are one matrix product [T * N, H] x [H, S] a sequence.
    """
    scores_BKTGS = _scores(q_BTNH, k_BSKH, mask_BTS, bias_BTSN, rules, scaled, cached_BKSH)
    return jax.nn.softmax(scores_BKTGS, axis=-1)


def _scores(
    q_BTNH: Array,
    k_BSKH: Array | None,
    mask_BTS: Array,
    bias_BTSN: Array | None,
    rules: Rules,
    scaled: bool,
    cached_BKSH: Array | None,
) -> Array:
    parts = []
    if cached_BKSH is not None:
        parts.append(("bksh", spread_cached(cached_BKSH, rules)))
    if k_BSKH is not None:
        parts.append(("bskh", spread(k_BSKH, None, rules)))
    K = parts[0][1].shape[parts[0][0].index("k")]
    heads = _heads(K)
    cut = rules("batch", heads, "length", None, None)
    q_BTKGH = _grouped(q_BTNH, K, rules)
    if scaled:
        q_BTKGH = q_BTKGH * q_BTKGH.shape[-1] ** -0.5
    scores = [contract(f"btkgh,{dims}->bktgs", q_BTKGH, keys, cut, jnp.float32) for dims, keys in parts]
    scores_BKTGS = scores[0] if len(scores) == 1 else jnp.concatenate(scores, axis=-1)
    if bias_BTSN is not None:
        B, T, S, N = bias_BTSN.shape
        batch = "batch" if B > 1 else None
        bias = jnp.reshape(bias_BTSN, (B, T, S, K, N // K), out_sharding=rules(batch, "length", None, heads, None))
        scores_BKTGS = scores_BKTGS + jnp.transpose(bias, (0, 3, 1, 4, 2)).astype(jnp.float32)
    return jnp.where(mask_BTS[:, None, :, None, :], scores_BKTGS, jnp.finfo(jnp.float32).min)


def weighted_values(
    weights_BKTGS: Array, v_BSKH: Array | None, rules: Rules, cached_BKSH: Array | None = None
) -> Array:
    """The values, given as the keys, summed by the weights of `attention_weights`: [B, T, N, H], cut along heads."""
    sums, start = [], 0

    def add(dims: str, values: Array) -> None:
        nonlocal start
        cut = rules("batch", "length", _heads(values.shape[dims.index("k")]), None, None)
        stop = start + values.shape[dims.index("s")]
        part_BKTGS = weights_BKTGS[..., start:stop].astype(values.dtype)
        sums.append(contract(f"bktgs,{dims}->btkgh", part_BKTGS, values, cut))
        start = stop

    if cached_BKSH is not None:
        add("bksh", spread_cached(cached_BKSH, rules))
    if v_BSKH is not None:
        add("bskh", spread(v_BSKH, None, rules))
    y_BTKGH = sum(sums[1:], start=sums[0])
    B, T, K, G, H = y_BTKGH.shape
    return jnp.reshape(y_BTKGH, (B, T, K * G, H), out_sharding=rules("batch", "length", "heads", None))


def _grouped(q_BTNH: Array, K: int, rules: Rules) -> Array:
    """[B, T, K, N / K, H]"""
    B, T, N, H = q_BTNH.shape
    return jnp.reshape(q_BTNH, (B, T, K, N // K, H), out_sharding=rules("batch", "length", _heads(K), None, None))


def _heads(K: int) -> str | None:
    # One head is one part. JAX loses what is said of a dimension of one where a scan has a rest to unroll.
    return "heads" if K > 1 else None


def spread(kv_BSKH: Array, length: str | None, rules: Rules) -> Array:
    """Keys or values cut along heads and along `length`, if it is named.

    They are repeated where there are fewer heads than parts, so that each part has its own.
    """
    B, S, K, H = kv_BSKH.shape
    parts = rules.parts("heads")
    cut = rules("batch", length, _heads(max(K, parts)), None)
    if K % parts == 0:
        return jax.sharding.reshard(kv_BSKH, cut)
    copies = jnp.broadcast_to(kv_BSKH[:, :, :, None, :], (B, S, K, parts // K, H))
    return jax.sharding.reshard(jnp.reshape(copies, (B, S, parts, H)), cut)


def spread_cached(kv_BKSH: Array, rules: Rules) -> Array:
    """The same of what a cache keeps, whole along its slots."""
    B, K, S, H = kv_BKSH.shape
    parts = rules.parts("heads")
    cut = rules("batch", _heads(max(K, parts)), None, None)
    if K % parts == 0:
        return jax.sharding.reshard(kv_BKSH, cut)
    copies = jnp.broadcast_to(kv_BKSH[:, :, None], (B, K, parts // K, S, H))
    return jax.sharding.reshard(jnp.reshape(copies, (B, parts, S, H)), cut)
