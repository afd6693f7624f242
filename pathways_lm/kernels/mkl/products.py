"""Products in fp32 by MKL (`products.cc`): of matrices, and of rows sorted by expert."""

import jax
import jax.numpy as jnp
from jax import Array


def product(left: Array, right: Array, left_turned: bool, right_turned: bool) -> Array:
    """[..., rows, summed] times [..., summed, columns]: [..., rows, columns], fp32. Turned, an operand's last two
    dimensions are the other way round."""
    *batch, first, second = left.shape
    rows, columns = second if left_turned else first, right.shape[-2 if right_turned else -1]
    out = jax.ShapeDtypeStruct((*batch, rows, columns), jnp.float32)
    call = jax.ffi.ffi_call("pathways_product", out, vmap_method="broadcast_all")
    return call(left, right, left_turned=left_turned, right_turned=right_turned)


def ragged(rows_ND: Array, kernels: Array, sizes_E: Array, turned: bool = False) -> Array:
    """[N, F], fp32: the first `sizes_E[0]` rows times the first kernel, and so on; behind them zero.

    Args:
      kernels: [E, D, F]; [E, F, D] where `turned`.
    """
    out = jax.ShapeDtypeStruct((len(rows_ND), kernels.shape[1 if turned else 2]), jnp.float32)
    return jax.ffi.ffi_call("pathways_ragged", out)(rows_ND, kernels, sizes_E.astype(jnp.int32), right_turned=turned)


def ragged_gradient(rows_ND: Array, dy_NF: Array, sizes_E: Array) -> Array:
    """The gradient of the kernels, [E, D, F], fp32."""
    out = jax.ShapeDtypeStruct((len(sizes_E), rows_ND.shape[1], dy_NF.shape[1]), jnp.float32)
    return jax.ffi.ffi_call("pathways_ragged_gradient", out)(rows_ND, dy_NF, sizes_E.astype(jnp.int32))
