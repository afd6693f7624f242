"""Attention as a kernel of NVIDIA GPUs: cuDNN's, through JAX."""

import jax
from jax import Array

from pathways_lm.kernels.work import Work
from pathways_lm.sharding import Rules


def cudnn_attention(
    q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, causal: bool, window: int, rules: Rules, scaled: bool
) -> Array:
    """Softmax attention of whole sequences of one document each, in bf16 or fp16.

    Args:
      q_BTNH: cut along heads.
      k_BSKH, v_BSKH: cut along heads where there are several (`kernels.attention.spread`).
      causal: a query sees what stands before it; with a `window`, only so many with itself.

    Returns:
      [B, T, N, H], as the queries lie.
    """
    heads = "heads" if k_BSKH.shape[2] > 1 else None
    queries, keys = rules("batch", "length", "heads", None).spec, rules("batch", "length", heads, None).spec

    def local(q: Array, k: Array, v: Array) -> Array:
        T, S = q.shape[1], k.shape[1]
        with Work(pairs(T, S, causal, window), T, T, fused=True).named():
            return jax.nn.dot_product_attention(
                *(q, k, v),
                scale=None if scaled else 1.0,
                is_causal=causal,
                local_window_size=(window - 1, 0) if window else None,
                implementation="cudnn",
            )

    mapped = jax.shard_map(local, mesh=rules.mesh, in_specs=(queries, keys, keys), out_specs=queries, check_vma=False)
    return mapped(q_BTNH, k_BSKH, v_BSKH)


def pairs(T: int, S: int, causal: bool, window: int) -> int:
    """Scores that are seen: cuDNN does not tell in which blocks it computes them."""
    if not causal:
        return T * S
    width = window or T
    return sum(min(t + 1, width) for t in range(T))
