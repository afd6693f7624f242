"""Attention as a kernel of NVIDIA GPUs, written in Triton: that of JAX's Pallas, which takes packed documents."""

import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pathways_lm.kernels.cudnn import pairs
from pathways_lm.kernels.work import Work
from pathways_lm.mesh import of_devices
from pathways_lm.sharding import Rules


class _Blocks(NamedTuple):
    """What the kernels have at a time."""

    queries: int
    keys: int
    backward: int
    """Of queries and of keys."""
    num_warps: int | None = None
    """None is what the kernels take by themselves."""


def _blocks(head_dim: int, itemsize: int, capability: str) -> _Blocks:
    """What shared memory holds; on Hopper and in 16 bits, what was fast on an H200 (docs/decisions/0023)."""
    if capability == "9.0" and itemsize == 2:
        return _Blocks(128, 64, 64, 4 if head_dim <= 128 else 8)
    return _Blocks(128, 128, 32) if head_dim <= 128 else _Blocks(64, 64, 32)


def triton_attention(
    q_BTNH: Array,
    k_BTKH: Array,
    v_BTKH: Array,
    segments_BT: Array | None,
    causal: bool,
    rules: Rules,
    scaled: bool,
    interpret: bool = False,
) -> Array:
    """Softmax attention of whole sequences to themselves.

    Args:
      q_BTNH: cut along heads.
      k_BTKH, v_BTKH: cut along heads where there are several (`kernels.attention.spread`).
      segments_BT: int32, the documents of tokens.
      causal: a query sees what stands before it in its document.
      interpret: run the kernel's steps as a program, where there is no GPU.

    Returns:
      [B, T, N, H], as the queries lie.

    Lengths are multiples of 128, as `kernels.choice` makes sure of.
    """
    heads = "heads" if k_BTKH.shape[2] > 1 else None
    queries, keys = rules("batch", "length", "heads", None).spec, rules("batch", "length", heads, None).spec

    def local(q: Array, k: Array, v: Array, segments: Array | None) -> Array:
        T, N, H = q.shape[1:]
        # Its grid is of heads that each have their own keys.
        k, v = (jnp.repeat(each, N // each.shape[2], axis=2) for each in (k, v))
        module = _module()
        blocks = _blocks(H, q.dtype.itemsize, of_devices(rules.mesh, "compute_capability"))
        sizes = module.BlockSizes(blocks.queries, blocks.keys, *(4 * [blocks.backward]))
        with Work(pairs(T, T, causal, 0), T, T, fused=False).named():
            return module.mha(
                *(q, k, v, segments),
                sm_scale=H**-0.5 if scaled else 1.0,
                causal=causal,
                block_sizes=sizes,
                num_warps=blocks.num_warps,
                interpret=interpret,
            )

    in_specs = (queries, keys, keys, None if segments_BT is None else rules("batch", "length").spec)
    mapped = jax.shard_map(local, mesh=rules.mesh, in_specs=in_specs, out_specs=queries, check_vma=False)
    return mapped(q_BTNH, k_BTKH, v_BTKH, segments_BT)


def _module() -> Any:
    # Pallas takes most of a second to import, which only programs of GPUs need.
    with warnings.catch_warnings():
        # From JAX 0.12 on it says that it has moved to tokamax, a package of its own. It is there all the same.
        warnings.simplefilter("ignore", DeprecationWarning)
        from jax.experimental.pallas.ops.gpu import attention

    return attention
