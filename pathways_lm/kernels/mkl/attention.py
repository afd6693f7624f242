"""Softmax attention in fp32 by MKL (`attention.cc`), whose scores are in caches and nowhere else."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import reshard


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def attend(q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, mask_BTS: Array, scale: float) -> Array:
    """softmax(scale q k^T) v over the keys a query may see, [B, T, N, H], all fp32, on one device.

    Args:
      k_BSKH, v_BSKH: each head serves N / K neighbouring ones of the queries.
      mask_BTS: true where a query may look; `B` may be 1 for one mask for all, and `T` for all queries. What sees
        nothing gets the mean value.
    """
    return _forward(q_BTNH, k_BSKH, v_BSKH, mask_BTS, scale)[0]


_Kept = tuple[Array, Array, Array, Array, Array, Array]


def _forward(q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, mask_BTS: Array, scale: float) -> tuple[Array, _Kept]:
    B, T, N, _ = q_BTNH.shape
    if mask_BTS.shape[1] != T:
        mask_BTS = jnp.broadcast_to(mask_BTS, (mask_BTS.shape[0], T, mask_BTS.shape[2]))
    outs = _like(q_BTNH), jax.ShapeDtypeStruct((B, T, N), jnp.float32)
    call = jax.ffi.ffi_call("pathways_attend", outs)
    y_BTNH, log_z_BTN = call(q_BTNH, k_BSKH, v_BSKH, mask_BTS, scale=np.float32(scale))
    y_BTNH = _laid(y_BTNH, q_BTNH)
    return y_BTNH, (q_BTNH, k_BSKH, v_BSKH, mask_BTS, y_BTNH, log_z_BTN)


def _backward(scale: float, kept: _Kept, dy_BTNH: Array) -> tuple[Array, Array, Array, None]:
    q_BTNH, k_BSKH, *_ = kept
    (B, _, N, H), (_, S, K, _) = q_BTNH.shape, k_BSKH.shape
    through = jax.ShapeDtypeStruct((B, S, N, H), jnp.float32)
    call = jax.ffi.ffi_call("pathways_attend_gradient", (_like(q_BTNH), through, through))
    dq_BTNH, *others = call(*kept, dy_BTNH, scale=np.float32(scale))
    dk_BSKH, dv_BSKH = (jnp.sum(jnp.reshape(each_BSNH, (B, S, K, N // K, H)), axis=3) for each_BSNH in others)
    return _laid(dq_BTNH, q_BTNH), _laid(dk_BSKH, k_BSKH), _laid(dv_BSKH, k_BSKH), None


attend.defvjp(_forward, _backward)


def _laid(x: Array, like: Array) -> Array:
    """With what JAX knows of how `like` lies: of what XLA calls it knows nothing."""
    placed = jax.typeof(like).sharding
    return x if placed.mesh.empty else reshard(x, placed)


def _like(x: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)
