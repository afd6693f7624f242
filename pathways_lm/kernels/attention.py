"""Attention with any number of key and value heads."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from pathways_lm.sharding import Rules


def attention_weights(
    q_BTNH: Array,
    keys: Sequence[Array],
    mask_BTS: Array,
    bias_BTSN: Array | None,
    rules: Rules,
    scaled: bool = True,
) -> Array:
    """softmax(q k^T / sqrt(H) + bias) over the keys a query may see.

    Args:
      q_BTNH: queries, `N` heads of size `H` at `T` positions, cut along heads.
      keys: of `S` positions in one or more parts [B, S', K, H], whole along them; each of the `K` heads serves N / K
        neighbouring query heads. Parts are not put together first: cached keys are many, and stay where they are.
      mask_BTS: true where a query may look; `B` may be 1 for one mask for all.
      bias_BTSN: added to the scores; `B` may be 1.
      scaled: divide by sqrt(H).

    Returns:
      fp32 [B, K', T, N / K', S], cut along its second dimension and as the queries along T. K' is K, or the number of
      parts heads are cut into where those are more.

    Source: "Attention Is All You Need" (arXiv:1706.03762), section 3.2; multi-query, arXiv:1911.02150; grouped-query,
    arXiv:2305.13245. With one head of keys the scores are one matrix product [T * N, H] x [H, S] a sequence.
    """
    keys = [spread(part, None, rules) for part in keys]
    K = keys[0].shape[2]
    heads = _heads(K)
    cut = rules("batch", heads, "length", None, None)
    q_BTKGH = _grouped(q_BTNH, K, rules)
    if scaled:
        q_BTKGH = q_BTKGH * q_BTKGH.shape[-1] ** -0.5
    scores = [
        jnp.einsum("btkgh,bskh->bktgs", q_BTKGH, k_BSKH, out_sharding=cut, preferred_element_type=jnp.float32)
        for k_BSKH in keys
    ]
    scores_BKTGS = scores[0] if len(scores) == 1 else jnp.concatenate(scores, axis=-1)
    if bias_BTSN is not None:
        B, T, S, N = bias_BTSN.shape
        batch = "batch" if B > 1 else None
        bias = jnp.reshape(bias_BTSN, (B, T, S, K, N // K), out_sharding=rules(batch, "length", None, heads, None))
        scores_BKTGS = scores_BKTGS + jnp.transpose(bias, (0, 3, 1, 4, 2)).astype(jnp.float32)
    scores_BKTGS = jnp.where(mask_BTS[:, None, :, None, :], scores_BKTGS, jnp.finfo(jnp.float32).min)
    return jax.nn.softmax(scores_BKTGS, axis=-1)


def weighted_values(weights_BKTGS: Array, values: Sequence[Array], rules: Rules) -> Array:
    """The values, in parts as the keys, summed by the weights of `attention_weights`: [B, T, N, H], cut along heads."""
    values = [spread(part, None, rules) for part in values]
    cut = rules("batch", "length", _heads(values[0].shape[2]), None, None)
    sums, start = [], 0
    for v_BSKH in values:
        part_BKTGS = weights_BKTGS[..., start : start + v_BSKH.shape[1]].astype(v_BSKH.dtype)
        sums.append(jnp.einsum("bktgs,bskh->btkgh", part_BKTGS, v_BSKH, out_sharding=cut))
        start += v_BSKH.shape[1]
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
