"""Layer normalisation against its formula in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pathways_lm.config import MeshConfig
from pathways_lm.layers.norm import LayerNorm
from pathways_lm.mesh import make_mesh
from pathways_lm.sharding import make_rules


@pytest.mark.parametrize("epsilon", [1e-6, 0.5])
@pytest.mark.parametrize("mean", [0.0, 1000.0], ids=["centred", "far from zero"])
def test_formula(epsilon, mean):
    """Far from zero, E[x^2] - E[x]^2 would lose every digit of the variance."""
    random = np.random.default_rng(0)
    x = (mean + random.normal(size=(2, 3, 16))).astype(np.float32)
    scale = random.normal(size=16).astype(np.float32)
    norm = LayerNorm(16, epsilon, make_rules("palm_2d", make_mesh(MeshConfig(data=1))))
    norm.scale[...] = jnp.asarray(scale)
    wide = x.astype(np.float64)
    centred = wide - wide.mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * scale
    # A number near 1000 has a spacing of 6e-5 in fp32, so its mean is not sharper.
    np.testing.assert_allclose(norm(jnp.asarray(x)), expected, atol=1e-6 + 3e-7 * mean)


def test_bf16_is_normalised_in_fp32():
    """From bf16 to bf16, with one rounding at the end: equal to the rounded fp32 result."""
    x = jnp.asarray(np.random.default_rng(1).normal(size=(1, 4, 256)), jnp.bfloat16)
    norm = LayerNorm(256, 1e-6, make_rules("palm_2d", make_mesh(MeshConfig(data=1))))
    actual = jax.jit(norm.__call__)(x)
    assert actual.dtype == jnp.bfloat16
    wide = np.asarray(x, np.float64)
    expected = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, rtol=2**-8)
