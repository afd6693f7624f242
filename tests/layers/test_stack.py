"""A stack is its layers one after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pathways_lm.config import MeshConfig
from pathways_lm.layers import stack as stack_module
from pathways_lm.layers.stack import Stack
from pathways_lm.mesh import make_mesh
from pathways_lm.sharding import make_rules

RULES = make_rules("palm_2d", make_mesh(MeshConfig(data=1)))


class Layer(nnx.Module):
    """x -> tanh(x w) + shared + own, and reports the sum of its input."""

    def __init__(self, rngs):
        self.weight = nnx.Param(jax.random.normal(rngs.params(), (4, 4)), dims=("embed", "norm"), std=1.0)

    def __call__(self, x, shared, own):
        return jnp.tanh(x @ self.weight[...]) + shared + own, x.sum()


def loop(weights, x, shared, own):
    sums = []
    for weight, mine in zip(weights, own, strict=True):
        sums.append(x.sum())
        x = np.tanh(x @ weight) + shared + mine
    return x, np.array(sums)


@pytest.mark.parametrize("remat", ["none", "block", "offload"])
@pytest.mark.parametrize("unroll", [1, 2, 5])
def test_equals_a_loop(remat, unroll):
    stack = Stack(Layer, 5, nnx.Rngs(0), RULES, remat, unroll)
    weights = np.asarray(stack.layers.weight[...])
    assert weights.shape == (5, 4, 4)
    assert len(np.unique(weights)) == weights.size
    random = np.random.default_rng(0)
    x, shared, own = (random.normal(size=shape).astype(np.float32) for shape in ((3, 4), (4,), (5, 4)))
    actual, sums = jax.jit(lambda x, shared, own: stack(x, shared, per_layer=own))(x, shared, own)
    expected, expected_sums = loop(weights, x, shared, own)
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    np.testing.assert_allclose(sums, expected_sums, atol=1e-5)


@pytest.mark.parametrize("mesh", [MeshConfig(data=1), MeshConfig(data=2, tensor=4)], ids=["one", "eight"])
def test_gradients_written_into_the_stack(monkeypatch, mesh):
    """As one GPU does: the same numbers, in the same places, as those put together afterwards."""
    rules = make_rules("palm_2d", make_mesh(mesh))
    stack = jax.device_put(
        np.random.default_rng(0).normal(size=(3, 8, 8)).astype(np.float32), rules(None, "embed", None)
    )

    def weighed(stack):
        return sum(number * (part**2).sum() for number, part in enumerate(stack_module._taken_apart(stack), 1))

    expected = 2 * np.asarray(stack) * np.array([1, 2, 3])[:, None, None]
    for there in (False, True):
        monkeypatch.setattr(stack_module, "traced_for", lambda x, there=there: "gpu" if there else "cpu")
        # Traced anew each time.
        gradient = jax.jit(jax.grad(lambda stack: weighed(stack)))
        written = there and mesh == MeshConfig(data=1)
        assert ("dynamic_update_slice" in gradient.lower(stack).as_text()) == written
        found = gradient(stack)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        assert jax.typeof(found).sharding.spec == jax.typeof(stack).sharding.spec
