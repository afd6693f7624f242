"""Rows sorted by expert times each expert's own kernel: a ragged product.

On TPUs and GPUs it is JAX's `ragged_dot`. On CPUs that multiplies every row with every expert's kernel; here the
experts are gone through one by one, each with its rows rounded up to one of a few sizes, as a compiled program knows
no others. MKL takes what there are (`kernels.mkl`).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pathways_lm.kernels.mkl import library, products

_STEPS = 4
"""Into so many parts an even share of the rows is cut; numbers of rows are rounded up to whole parts."""


@jax.custom_vjp
def ragged_product(rows_ND: Array, kernels_EDF: Array, sizes_E: Array) -> Array:
    """[N, F]: the first `sizes_E[0]` rows times the first kernel, the next ones times the second, and so on.

    What comes behind the last expert's rows is zero. Sums are fp32.
    """
    by_expert = products.ragged if library.multiplies(rows_ND, kernels_EDF) else _by_expert
    return jax.lax.platform_dependent(rows_ND, kernels_EDF, sizes_E, cpu=by_expert, default=ragged_dot)


def _forward(rows_ND: Array, kernels_EDF: Array, sizes_E: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    return ragged_product(rows_ND, kernels_EDF, sizes_E), (rows_ND, kernels_EDF, sizes_E)


def _backward(kept: tuple[Array, Array, Array], dy_NF: Array) -> tuple[Array, Array, np.ndarray]:
    # Whole numbers have gradients of no type.
    nothing = np.zeros(kept[2].shape, jax.dtypes.float0)
    by_expert = _backward_by_mkl if library.multiplies(*kept[:2]) else _backward_by_expert
    drows, dkernels = jax.lax.platform_dependent(*kept, dy_NF, cpu=by_expert, default=_backward_of_dot)
    return drows, dkernels, nothing


ragged_product.defvjp(_forward, _backward)


def ragged_dot(rows_ND: Array, kernels_EDF: Array, sizes_E: Array) -> Array:
    """The same by JAX's own product."""
    wide = jax.lax.ragged_dot(rows_ND, kernels_EDF, sizes_E, preferred_element_type=jnp.float32)
    return wide.astype(rows_ND.dtype)


def _backward_of_dot(rows_ND: Array, kernels_EDF: Array, sizes_E: Array, dy_NF: Array) -> tuple[Array, Array]:
    return jax.vjp(lambda rows, kernels: ragged_dot(rows, kernels, sizes_E), rows_ND, kernels_EDF)[1](dy_NF)


def _backward_by_mkl(rows_ND: Array, kernels_EDF: Array, sizes_E: Array, dy_NF: Array) -> tuple[Array, Array]:
    return products.ragged(dy_NF, kernels_EDF, sizes_E, turned=True), products.ragged_gradient(rows_ND, dy_NF, sizes_E)


def _by_expert(rows_ND: Array, kernels_EDF: Array, sizes_E: Array) -> Array:
    """An expert's rounded rows reach into the next one's, who comes later and writes over them."""
    (N, _), (E, _, F) = rows_ND.shape, kernels_EDF.shape
    sizes = _sizes(N, E)
    padded = _padded(rows_ND, sizes)

    def one(expert: Array, y: Array) -> Array:
        first, kernel_DF = _first(sizes_E, expert), jax.lax.dynamic_index_in_dim(kernels_EDF, expert, keepdims=False)

        def product(size: int, y: Array) -> Array:
            part = jax.lax.dynamic_slice_in_dim(padded, first, size)
            written = jnp.dot(part, kernel_DF, preferred_element_type=jnp.float32).astype(y.dtype)
            return jax.lax.dynamic_update_slice_in_dim(y, written, first, axis=0)

        return jax.lax.switch(_class(sizes, sizes_E[expert]), [partial(product, size) for size in sizes], y)

    y = jax.lax.fori_loop(0, E, one, jnp.zeros((N + sizes[-1], F), rows_ND.dtype))[:N]
    return jnp.where(jnp.arange(N)[:, None] < jnp.sum(sizes_E), y, 0)


def _backward_by_expert(rows_ND: Array, kernels_EDF: Array, sizes_E: Array, dy_NF: Array) -> tuple[Array, Array]:
    drows = _by_expert(dy_NF, jnp.swapaxes(kernels_EDF, 1, 2), sizes_E)
    sizes = _sizes(len(rows_ND), len(kernels_EDF))
    padded, dy = _padded(rows_ND, sizes), _padded(dy_NF, sizes)

    def one(expert: Array, dkernels: Array) -> Array:
        first = _first(sizes_E, expert)

        def product(size: int) -> Array:
            part, dpart = (jax.lax.dynamic_slice_in_dim(of, first, size) for of in (padded, dy))
            part = jnp.where(jnp.arange(size)[:, None] < sizes_E[expert], part, 0)
            sums = jax.lax.dot_general(part, dpart, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
            return sums.astype(dkernels.dtype)

        dkernel = jax.lax.switch(_class(sizes, sizes_E[expert]), [partial(product, size) for size in sizes])
        return jax.lax.dynamic_update_index_in_dim(dkernels, dkernel, expert, axis=0)

    return drows, jax.lax.fori_loop(0, len(kernels_EDF), one, jnp.zeros_like(kernels_EDF))


def _sizes(rows: int, experts: int) -> tuple[int, ...]:
    """Numbers of rows that an expert's are rounded up to: none, finely up to twice an even share, then doubling."""
    step = max(-(-rows // (experts * _STEPS)), 1)
    sizes = [step * number for number in range(2 * _STEPS + 1)]
    while sizes[-1] < rows:
        sizes.append(2 * sizes[-1])
    return tuple(sorted({min(size, rows) for size in sizes}))


def _class(sizes: tuple[int, ...], size: Array) -> Array:
    """Which of the sizes is the least that holds so many rows."""
    return jnp.searchsorted(jnp.array(sizes), size)


def _first(sizes_E: Array, expert: Array) -> Array:
    return jnp.sum(jnp.where(jnp.arange(len(sizes_E)) < expert, sizes_E, 0))


def _padded(rows: Array, sizes: tuple[int, ...]) -> Array:
    """Room behind the rows, so that no slice is moved back from the end."""
    return jnp.pad(rows, ((0, sizes[-1]), (0, 0)))
