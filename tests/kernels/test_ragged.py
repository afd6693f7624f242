"""Rows times each expert's own kernel, against loops in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pathways_lm.kernels.ragged import ragged_product

N, D, F, E = 37, 5, 7, 4
RANDOM = np.random.default_rng(0)
ROWS, KERNELS, DY = (RANDOM.normal(size=shape).astype(np.float32) for shape in ((N, D), (E, D, F), (N, F)))


def expected(sizes):
    """y, and the gradients of sum(y * DY)."""
    y, drows, dkernels = np.zeros((N, F)), np.zeros((N, D)), np.zeros((E, D, F))
    row = 0
    for expert, size in enumerate(sizes):
        for _ in range(size):
            y[row] = ROWS[row].astype(np.float64) @ KERNELS[expert]
            drows[row] = KERNELS[expert].astype(np.float64) @ DY[row]
            dkernels[expert] += np.outer(ROWS[row].astype(np.float64), DY[row])
            row += 1
    return y, drows, dkernels


@pytest.mark.parametrize("sizes", [(9, 9, 9, 10), (0, 37, 0, 0), (0, 0, 0, 0), (1, 0, 30, 2), (20, 3, 0, 14)], ids=str)
def test_equals_loops(sizes):
    def scored(rows, kernels, sizes_E):
        y = ragged_product(rows, kernels, sizes_E)
        return jnp.sum(y * DY), y

    graded = jax.jit(jax.grad(scored, argnums=(0, 1), has_aux=True))
    (drows, dkernels), y = graded(ROWS, KERNELS, jnp.array(sizes, jnp.int32))
    for actual, right in zip((y, drows, dkernels), expected(sizes), strict=True):
        np.testing.assert_allclose(actual, right, atol=1e-5)
