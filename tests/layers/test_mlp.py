"""SwiGLU against its formula (arXiv:2002.05202)."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pathways_lm.config import MeshConfig
from pathways_lm.layers.mlp import SwiGLU
from pathways_lm.mesh import make_mesh
from pathways_lm.sharding import make_rules


def test_formula(tiny):
    """(swish(x W) * x V) W2: the gate is the side with the swish."""
    layer = SwiGLU(tiny(), nnx.Rngs(0), make_rules("palm_2d", make_mesh(MeshConfig(data=1))))
    h = np.random.default_rng(0).normal(size=(2, 3, 32)).astype(np.float32)
    gate, up, down = (np.asarray(p[...], np.float64) for p in (layer.gate, layer.up, layer.down))
    assert gate.shape == up.shape == (32, 48)
    x = h @ gate
    expected = (x / (1 + np.exp(-x)) * (h @ up)) @ down
    np.testing.assert_allclose(jax.jit(layer.__call__)(jnp.asarray(h)), expected, atol=2e-6 * np.abs(expected).max())
