"""Cross-entropy and its gradient against numpy in float64, whole and cut along the vocabulary."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pathways_lm.config import MeshConfig
from pathways_lm.kernels.cross_entropy import LOGITS_BYTES, Projection, cross_entropy, linear_cross_entropy, parts
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


D = 8


def by_product(x, kernel, bias, targets, weights):
    """nll, log Z, the objective and its gradients with respect to inputs, kernel [V, D] and bias, in float64."""
    x, kernel, bias = (array.astype(np.float64) for array in (x, kernel, bias))
    nll, log_z, gradient = by_numpy(x @ kernel.T + bias, targets)
    gradient = gradient * weights[..., None]
    objective = np.sum(weights * (nll + Z * log_z**2))
    gradients = (gradient @ kernel, np.einsum("blv,bld->vd", gradient, x), gradient.sum((0, 1)))
    return nll, log_z, objective, gradients


@pytest.mark.parametrize(
    "mesh", [{"data": 1}, {"data": 2, "tensor": 4}, {"data": 2, "tensor": 2, "context": 2}], ids=str
)
@pytest.mark.parametrize("dims", ["vd", "dv"])
@pytest.mark.parametrize("num_parts", [1, 4])
def test_product_and_loss_in_parts(monkeypatch, num_parts, dims, mesh):
    """As from all logits at once, on every mesh; the last token weighs nothing; and three times it has three times
    the gradient."""
    monkeypatch.setitem(LOGITS_BYTES, "cpu", 2**30 if num_parts == 1 else 1)
    rules = make_rules("palm_2d", make_mesh(MeshConfig(**mesh)))
    length = 4 * rules.parts("length")
    assert parts(rules, B, length, V) == num_parts
    random = np.random.default_rng(1)
    x, kernel, bias = (random.normal(size=size).astype(np.float32) for size in ((B, length, D), (V, D), (V,)))
    targets = random.integers(0, V, (B, length), dtype=np.int32)
    weights = random.random((B, length)).astype(np.float32)
    weights[:, -1] = 0
    rows = rules("batch", "length")
    used = {"vd": rules.used("vocab", None), "dv": rules.used(None, "vocab")}[dims]
    stored = jax.device_put(
        kernel if dims == "vd" else kernel.T, rules(*("vocab" if dim == "v" else None for dim in dims))
    )
    given = (jax.device_put(x, rules("batch", "length", None)), stored, jax.device_put(bias, rules("vocab")))

    @jax.jit
    def scored(x, kernel, bias, targets, weights):
        def objective(x, kernel, bias):
            projection = Projection(x, jax.sharding.reshard(kernel, used), bias, dims, rules)
            found = linear_cross_entropy(projection, targets, weights, Z)
            return 3 * found.objective, found

        return jax.grad(objective, argnums=(0, 1, 2), has_aux=True)(x, kernel, bias)

    gradients, found = scored(*given, *jax.device_put((targets, weights), rows))
    nll, log_z, objective, expected = by_product(x, kernel, bias, targets, weights)
    np.testing.assert_allclose(found.nll_BL, nll, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.log_z_BL, log_z, rtol=1e-5)
    np.testing.assert_allclose(found.objective, objective, rtol=1e-5)
    dx, dkernel, dbias = gradients
    dkernel = dkernel if dims == "vd" else dkernel.T
    for gradient, right in zip((dx, dkernel, dbias), expected, strict=True):
        np.testing.assert_allclose(gradient, 3 * right, rtol=1e-4, atol=1e-5 * np.abs(right).max())


def test_no_logits_are_held():
    """Gradients of a head of 16,384 pieces over 4,096 tokens, whose logits are 256 MiB, need less than a third of that
    besides arguments and results; and four times the tokens little more than four times their inputs."""
    rules = make_rules("palm_2d", make_mesh(MeshConfig(data=1)))

    def needed(length: int) -> int:
        def objective(x, kernel, targets, weights):
            return linear_cross_entropy(Projection(x, kernel, None, "vd", rules), targets, weights, Z).objective

        rows = rules("batch", "length")
        shapes = [
            ((1, length, 64), rules("batch", "length", None)),
            ((16384, 64), rules("vocab", None)),
            ((1, length), rows),
        ]
        x, kernel, weights = (jax.ShapeDtypeStruct(shape, jnp.float32, sharding=cut) for shape, cut in shapes)
        targets = jax.ShapeDtypeStruct((1, length), jnp.int32, sharding=rows)
        compiled = jax.jit(jax.grad(objective, argnums=(0, 1))).lower(x, kernel, targets, weights).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert needed(4096) < 4096 * 16384 * 4 / 3
    assert needed(16384) < needed(4096) + 4 * 12288 * 64 * 4
