"""Products on one device, and their gradients, against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pathways_lm.config import MeshConfig
from pathways_lm.kernels.product import product
from pathways_lm.mesh import make_mesh
from pathways_lm.sharding import make_rules

SIZES = {"b": 2, "l": 3, "d": 5, "f": 7, "n": 4, "h": 6}
DIMS = {"b": "batch", "l": "length", "f": "mlp", "n": "heads"}


@pytest.mark.parametrize("subscripts", ["bld,df->blf", "bld,dnh->blnh", "blnh,nhd->bld"])
def test_equals_numpy(subscripts):
    rules = make_rules("palm_2d", make_mesh(MeshConfig(data=1)))
    read, weights, result = subscripts.replace("->", ",").split(",")
    random = np.random.default_rng(0)
    x, kernel, dy = (random.normal(size=[SIZES[dim] for dim in dims]) for dims in (read, weights, result))

    def place(array, dims):
        names = (DIMS.get(dim) if dims != weights or dim in "fn" else None for dim in dims)
        return jax.device_put(array.astype(np.float32), rules(*names))

    out = rules(*(DIMS.get(dim) for dim in result))

    def scored(x, kernel, dy):
        y = product(subscripts, x, kernel, out, "")
        return jnp.sum(y * dy), y

    graded = jax.jit(jax.grad(scored, argnums=(0, 1), has_aux=True))
    (dx, dkernel), y = graded(place(x, read), place(kernel, weights), place(dy, result))
    np.testing.assert_allclose(y, np.einsum(subscripts, x, kernel), atol=1e-5)
    np.testing.assert_allclose(dx, np.einsum(f"{result},{weights}->{read}", dy, kernel), atol=1e-5)
    np.testing.assert_allclose(dkernel, np.einsum(f"{read},{result}->{weights}", x, dy), atol=1e-5)
    assert y.sharding.spec == out.spec
