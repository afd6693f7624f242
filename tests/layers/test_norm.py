"""Layer normalisation against its formula in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pathways_lm.config import MeshConfig
from pathways_lm.layers.norm import Norm
from pathways_lm.mesh import make_mesh
from pathways_lm.sharding import make_rules


@pytest.mark.parametrize("epsilon", [1e-6, 0.5])
@pytest.mark.parametrize("mean", [0.0, 1000.0], ids=["centred", "far from zero"])
def test_formula(tiny, epsilon, mean):
    """Far from zero, E[x^2] - E[x]^2 would lose every digit of the variance."""
    random = np.random.default_rng(0)
    x = (mean + random.normal(size=(2, 3, 16))).astype(np.float32)
    scale = random.normal(size=16).astype(np.float32)
    norm = Norm(tiny(embed_dim=16, norm_epsilon=epsilon), make_rules("palm_2d", make_mesh(MeshConfig(data=1))))
    norm.scale[...] = jnp.asarray(scale)
    wide = x.astype(np.float64)
    centred = wide - wide.mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * scale
    # A number near 1000 has a spacing of 6e-5 in fp32, so its mean is not sharper.
    np.testing.assert_allclose(norm(jnp.asarray(x)), expected, atol=1e-6 + 3e-7 * mean)


def test_bf16_is_normalised_in_fp32(tiny):
    """From bf16 to bf16, with one rounding at the end: equal to the rounded fp32 result."""
    x = jnp.asarray(np.random.default_rng(1).normal(size=(1, 4, 256)), jnp.bfloat16)
    norm = Norm(tiny(embed_dim=256), make_rules("palm_2d", make_mesh(MeshConfig(data=1))))
    actual = jax.jit(norm.__call__)(x)
    assert actual.dtype == jnp.bfloat16
    wide = np.asarray(x, np.float64)
    expected = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, rtol=2**-8)


@pytest.mark.parametrize("norm_scale", [True, False])
@pytest.mark.parametrize("norm_bias", [True, False])
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_every_kind(tiny, kind, norm_scale, norm_bias):
    random = np.random.default_rng(2)
    x, scale, bias = random.normal(2.0, size=(2, 3, 16)), random.normal(size=16), random.normal(size=16)
    config = tiny(embed_dim=16, norm=kind, norm_scale=norm_scale, norm_bias=norm_bias)
    norm = Norm(config, make_rules("palm_2d", make_mesh(MeshConfig(data=1))))
    if norm_scale:
        norm.scale[...] = jnp.asarray(scale, jnp.float32)
    if norm_bias:
        norm.bias[...] = jnp.asarray(bias, jnp.float32)
    expected = x - x.mean(-1, keepdims=True) if kind == "layer" else x
    expected = expected / np.sqrt((expected**2).mean(-1, keepdims=True) + config.norm_epsilon)
    expected = (expected * scale if norm_scale else expected) + (bias if norm_bias else 0)
    np.testing.assert_allclose(norm(jnp.asarray(x, jnp.float32)), expected, atol=2e-6)


def test_only_the_input_is_kept(tiny):
    """For the gradient: the input in its own type, and the scale."""
    norm = Norm(tiny(embed_dim=16), make_rules("palm_2d", make_mesh(MeshConfig(data=1))))
    x = jax.ShapeDtypeStruct((2, 3, 16), jnp.bfloat16)
    kept = jax.tree.leaves(jax.eval_shape(lambda x: jax.vjp(norm, x)[1], x))
    assert sorted((str(leaf.dtype), leaf.shape) for leaf in kept) == [("bfloat16", (2, 3, 16)), ("float32", (16,))]
