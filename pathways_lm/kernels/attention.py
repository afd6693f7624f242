"""Multi-query attention."""

import jax
import jax.numpy as jnp
from jax import Array

from pathways_lm.sharding import Rules


def multi_query_attention(q_BTNH: Array, k_BSH: Array, v_BSH: Array, mask_BTS: Array, rules: Rules) -> Array:
    """softmax(q k^T / sqrt(H)) v, with one key and value head for all query heads.

    Args:
      q_BTNH: queries, `N` heads of size `H` at `T` positions.
      k_BSH, v_BSH: the keys and values of `S` positions.
      mask_BTS: true where a query may look; `B` may be 1 for one mask for all.

    Returns:
      [B, T, N, H], cut along heads. The softmax is in fp32.

    Source: PaLM section 2 (multi-query attention); Shazeer, arXiv:1911.02150. Heads stay next to
    positions, so that scores are one matrix product [T * N, H] x [H, S] a sequence and nothing is transposed.
    """
    heads = rules("batch", "length", "heads", None)
    scale = q_BTNH.shape[-1] ** -0.5
    scores_BTNS = jnp.einsum(
        "btnh,bsh->btns", q_BTNH * scale, k_BSH, out_sharding=heads, preferred_element_type=jnp.float32
    )
    scores_BTNS = jnp.where(mask_BTS[:, :, None, :], scores_BTNS, jnp.finfo(jnp.float32).min)
    weights_BTNS = jax.nn.softmax(scores_BTNS, axis=-1).astype(v_BSH.dtype)
    return jnp.einsum("btns,bsh->btnh", weights_BTNS, v_BSH, out_sharding=heads)
