"""The feed-forward layer against its formulas (arXiv:2002.05202; GELU: arXiv:1606.08415)."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pathways_lm.config import MeshConfig
from pathways_lm.layers.mlp import MLP, exact_gelu
from pathways_lm.mesh import make_mesh
from pathways_lm.sharding import make_rules


def gelu(x):
    return x * np.vectorize(lambda value: 0.5 * (1 + math.erf(value / math.sqrt(2))))(x)


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


PLAIN = {"relu": lambda x: np.maximum(x, 0), "gelu": gelu, "gelu_tanh": gelu_tanh}
GATED = {"swiglu": lambda x: x / (1 + np.exp(-x)), "geglu": gelu_tanh}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", [*PLAIN, *GATED])
def test_formula(tiny, activation, bias):
    """f(x W) W2, gated (f(x W) * x V) W2: the gate is the side with the activation."""
    config = tiny(activation=activation, bias=bias)
    layer = MLP(config, nnx.Rngs(0), make_rules("palm_2d", make_mesh(MeshConfig(data=1))))
    random = np.random.default_rng(0)
    h = random.normal(size=(2, 3, 32)).astype(np.float32)
    values = {}
    for name, parameter in nnx.to_pure_dict(nnx.state(layer, nnx.Param)).items():
        values[name] = random.normal(size=parameter.shape).astype(np.float32)
        getattr(layer, name)[...] = jnp.asarray(values[name])

    def into(name):
        return h.astype(np.float64) @ values[name] + (values[f"{name}_bias"] if bias else 0)

    assert values["up"].shape == (32, 48)
    hidden = GATED[activation](into("gate")) * into("up") if activation in GATED else PLAIN[activation](into("up"))
    expected = hidden @ values["down"] + (values["down_bias"] if bias else 0)
    assert len(values) == (3 if activation in GATED else 2) * (2 if bias else 1)
    np.testing.assert_allclose(jax.jit(layer.__call__)(jnp.asarray(h)), expected, atol=2e-6 * np.abs(expected).max())


def test_slope_of_exact_gelu():
    """Against central differences, inside of `shard_map` too, where JAX 0.12 differentiates no erf of its own."""
    mesh = make_mesh(MeshConfig(data=8))
    x = np.linspace(-6, 6, 96)
    expected = (gelu(x + 1e-5) - gelu(x - 1e-5)) / 2e-5
    slope = jax.grad(lambda x: exact_gelu(x).sum())
    spec = jax.sharding.PartitionSpec("data")
    with jax.set_mesh(mesh):
        apart = jax.jit(jax.shard_map(slope, mesh=mesh, in_specs=spec, out_specs=spec))
        placed = jax.device_put(jnp.asarray(x, jnp.float32), jax.NamedSharding(mesh, spec))
        np.testing.assert_allclose(apart(placed), expected, atol=2e-6)
    np.testing.assert_allclose(slope(jnp.asarray(x, jnp.float32)), expected, atol=2e-6)


@pytest.mark.parametrize("activation", [*PLAIN, *GATED])
def test_hidden_units_are_not_kept(tiny, activation):
    """For the gradient: the input, what the activation takes, and the kernels."""
    layer = MLP(tiny(activation=activation), nnx.Rngs(0), make_rules("palm_2d", make_mesh(MeshConfig(data=1))))
    h = jax.ShapeDtypeStruct((2, 3, 32), jnp.float32)
    kept = jax.tree.leaves(jax.eval_shape(lambda h: jax.vjp(layer, h)[1], h))
    inputs = 2 if activation in GATED else 1
    assert sorted({leaf.shape for leaf in kept if leaf.ndim == 2}) == [(32, 48), (48, 32)]
    assert [leaf.shape for leaf in kept if leaf.shape == (2, 3, 48)] == inputs * [(2, 3, 48)]
