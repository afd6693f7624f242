"""Cross-entropy and its gradient against numpy in float64, whole and cut along the vocabulary."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pathways_lm.config import MeshConfig
from pathways_lm.kernels.cross_entropy import cross_entropy
from pathways_lm.mesh import make_mesh
from pathways_lm.sharding import make_rules

B, L, V = 4, 3, 40
Z = 0.01


def inputs(scale: float):
    random = np.random.default_rng(0)
    targets = random.integers(0, V, (B, L), dtype=np.int32)
    targets[0, 0], targets[1, 1] = 0, V - 1
    return (scale * random.normal(size=(B, L, V))).astype(np.float32), targets


def by_numpy(logits, targets):
    """Negative log-likelihood, log Z, and the gradient of sum(nll + Z log_z^2)."""
    logits = logits.astype(np.float64)
    top = logits.max(-1, keepdims=True)
    log_z = np.log(np.exp(logits - top).sum(-1)) + top[..., 0]
    one_hot = np.eye(V)[targets]
    gradient = (1 + 2 * Z * log_z)[..., None] * np.exp(logits - log_z[..., None]) - one_hot
    return log_z - (logits * one_hot).sum(-1), log_z, gradient


@pytest.mark.parametrize(("data", "tensor"), [(1, 1), (1, 8), (4, 2)])
@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4])
def test_against_numpy(scale, data, tensor):
    logits, targets = inputs(scale)
    rules = make_rules("palm_2d", make_mesh(MeshConfig(data=data, tensor=tensor)))
    placed = jax.device_put(logits, rules("batch", "length", "vocab"))
    placed_targets = jax.device_put(targets, rules("batch", None))

    def total(logits):
        nll, log_z = cross_entropy(logits, placed_targets)
        return jnp.sum(nll + Z * jnp.square(log_z))

    nll, log_z = jax.jit(cross_entropy)(placed, placed_targets)
    gradient = jax.jit(jax.grad(total))(placed)
    expected_nll, expected_log_z, expected_gradient = by_numpy(logits, targets)
    # A logit of 1e4 has a spacing of 1e-3 in fp32: of the logits, not of their small differences.
    np.testing.assert_allclose(nll, expected_nll, atol=1e-6 * (1 + np.abs(logits).max()))
    np.testing.assert_allclose(log_z, expected_log_z, rtol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-6 * np.abs(expected_gradient).max())
    assert gradient.sharding.spec == placed.sharding.spec


def test_bf16_logits_are_summed_in_fp32():
    """A thousand equal logits: log Z is ln 1000 to seven digits, which bf16 cannot hold."""
    nll, log_z = jax.jit(cross_entropy)(jnp.zeros((1, 1, 1000), jnp.bfloat16), jnp.array([[7]]))
    assert nll.dtype == log_z.dtype == jnp.float32
    np.testing.assert_allclose([nll[0, 0], log_z[0, 0]], np.log(1000), rtol=1e-6)
