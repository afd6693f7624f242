"""Attention as a kernel of TPUs: JAX's splash attention, which skips blocks that no query sees."""

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pathways_lm.kernels.choice import LANES
from pathways_lm.kernels.work import Work
from pathways_lm.sharding import Rules

# Queries and keys whose scores a kernel has at a time. Larger ones waste more of a causal mask's diagonal.
BLOCK = 512
# One kernel for all gradients makes five products of seven, but keeps the queries' gradients of each block of keys
# until they are added: above so many blocks that is more than it saves.
FUSED_BLOCKS = 8


def splash_attention(
    q_BTNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    segments: tuple[Array, Array] | None,
    causal: bool,
    window: int,
    rules: Rules,
    scaled: bool,
    interpret: bool = False,
) -> Array:
    """Softmax attention of whole sequences.

    Args:
      q_BTNH: cut along heads.
      k_BSKH, v_BSKH: cut along heads where there are several (`kernels.attention.spread`).
      segments: int32 [B, T] and [B, S], the documents of queries and keys.
      causal: a query sees what stands before it in its document; with a `window`, only so many with itself.
      interpret: run the kernel's steps as a program, where there is no TPU.

    Returns:
      [B, T, N, H], as the queries lie.

    Lengths are multiples of 128, as `kernels.choice` makes sure of.
    """
    heads = "heads" if k_BSKH.shape[2] > 1 else None
    queries = rules("batch", "length", "heads", None).spec
    keys = rules("batch", "length", heads, None).spec

    def local(q: Array, k: Array, v: Array, segments: tuple[Array, Array] | None) -> Array:
        (B, T, N, H), (S, K) = q.shape, k.shape[1:3]
        block_q, block_kv = block_of(T), block_of(S)
        if scaled:
            q = q * H**-0.5
        q_BKGTH = jnp.transpose(jnp.reshape(q, (B, T, K, N // K, H)), (0, 2, 3, 1, 4))
        k_BKSH, v_BKSH = (jnp.swapaxes(each, 1, 2) for each in (k, v))
        kernel = _kernel(N // K, T, S, causal, window, interpret)
        # Of each head of keys, and of each sequence.
        attend = jax.vmap(jax.vmap(kernel, in_axes=(0, 0, 0, None)))
        ids = None if segments is None else _module().SegmentIds(*segments)
        pairs = visited(T, S, causal, window) * block_q * block_kv
        with Work(pairs, T, block_q, is_fused(S)).named():
            y_BKGTH = attend(q_BKGTH, k_BKSH, v_BKSH, ids)
        return jnp.reshape(jnp.transpose(y_BKGTH, (0, 3, 1, 2, 4)), (B, T, N, H))

    in_specs = (
        queries,
        keys,
        keys,
        None if segments is None else (rules("batch", "length").spec, rules("batch", None).spec),
    )
    return jax.shard_map(local, mesh=rules.mesh, in_specs=in_specs, out_specs=queries, check_vma=False)(
        q_BTNH, k_BSKH, v_BSKH, segments
    )


def block_of(length: int) -> int:
    """The largest block that divides a length."""
    return next(size for size in range(BLOCK, 0, -LANES) if length % size == 0)


def is_fused(S: int) -> bool:
    """Whether one kernel makes all gradients."""
    return S // block_of(S) <= FUSED_BLOCKS


def visited(T: int, S: int, causal: bool, window: int) -> int:
    """Blocks of scores of which some are seen, of one head."""
    queries, keys = block_of(T), block_of(S)
    first_T, first_S = np.arange(0, T, queries)[:, None], np.arange(0, S, keys)[None]
    seen = np.ones((T // queries, S // keys), bool)
    if causal:
        seen &= first_S < first_T + queries
        if window:
            seen &= first_S + keys > first_T - window + 1
    return int(seen.sum())


@lru_cache(maxsize=64)
def _mask(T: int, S: int, causal: bool, window: int) -> Any:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    if not causal:
        return masks.FullMask((T, S))
    return masks.LocalMask((T, S), (window - 1, 0), 0) if window else masks.CausalMask((T, S))


def _kernel(heads: int, T: int, S: int, causal: bool, window: int, interpret: bool) -> Any:
    """Of `heads` queries that share their keys."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    queries, keys = block_of(T), block_of(S)
    fused = is_fused(S)
    apart = {} if fused else {"block_q_dq": queries, "block_kv_dq": keys}
    sizes = _module().BlockSizes(
        block_q=queries, block_kv=keys, block_q_dkv=queries, block_kv_dkv=keys, use_fused_bwd_kernel=fused, **apart
    )
    mask = masks.MultiHeadMask([_mask(T, S, causal, window)] * heads)
    return _module().make_splash_mqa_single_device(mask, block_sizes=sizes, interpret=interpret)


def _module() -> Any:
    # Pallas takes most of a second to import, which only programs of TPUs need.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

    return splash_attention_kernel
