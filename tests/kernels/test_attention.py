"""Attention with any number of key heads against loops in numpy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pathways_lm.config import MeshConfig
from pathways_lm.kernels.attention import attention, attention_weights, weighted_values
from pathways_lm.mesh import make_mesh
from pathways_lm.sharding import make_rules

B, T, S, N, H = 4, 5, 7, 4, 6


def by_loops(q, k, v, mask):
    """One query of one head at a time, in float64; each looks only at the keys that its mask allows."""
    out = np.zeros(q.shape)
    for b, t, n in np.ndindex(q.shape[:3]):
        seen = np.flatnonzero(mask[b if mask.shape[0] > 1 else 0, t])
        head = n // (q.shape[2] // k.shape[2])
        scores = np.array([np.dot(q[b, t, n], k[b, s, head]) / np.sqrt(q.shape[-1]) for s in seen])
        weights = np.exp(scores - scores.max())
        out[b, t, n] = sum(w * v[b, s, head] for w, s in zip(weights / weights.sum(), seen, strict=True))
    return out


@partial(jax.jit, static_argnums=4)
def attend(q, k, v, mask, rules):
    return weighted_values(attention_weights(q, k, mask, None, rules), v, rules)


def inputs(mask_batch: int, scale: float = 1.0, kv_heads: int = 1):
    random = np.random.default_rng(0)
    q, k, v = (
        random.normal(size=shape).astype(np.float32)
        for shape in ((B, T, N, H), (B, S, kv_heads, H), (B, S, kv_heads, H))
    )
    mask = random.random((mask_batch, T, S)) < 0.5
    mask[:, :, 2] = True
    return q * np.float32(scale), k, v, mask


def on(data: int, tensor: int, q, k, v, mask):
    rules = make_rules("palm_2d", make_mesh(MeshConfig(data=data, tensor=tensor)))
    whole = rules("batch", "length", None)
    q = jax.device_put(q, rules("batch", "length", "heads", None))
    k, v = jax.device_put((k, v), rules("batch", "length", "heads" if k.shape[2] % tensor == 0 else None, None))
    mask = jax.device_put(mask, whole if mask.shape[0] > 1 else rules())
    out = attend(q, k, v, mask, rules)
    assert out.sharding.spec == rules("batch", "length", "heads", None).spec
    return out


@pytest.mark.parametrize(("data", "tensor"), [(1, 1), (2, 4), (4, 2)])
@pytest.mark.parametrize("mask_batch", [B, 1], ids=["a mask each", "one mask"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4], ids=["multi-query", "grouped", "multi-head"])
def test_against_loops(kv_heads, mask_batch, data, tensor):
    """Two key heads on four parts of the queries', too."""
    args = inputs(mask_batch, kv_heads=kv_heads)
    np.testing.assert_allclose(on(data, tensor, *args), by_loops(*args), atol=2e-6)


def test_large_scores():
    """Scores in the thousands: the softmax takes off the largest one first."""
    args = inputs(B, scale=3000.0)
    actual = on(1, 1, *args)
    assert np.all(np.isfinite(actual))
    np.testing.assert_allclose(actual, by_loops(*args), atol=1e-3)


def in_bf16(q, k, v):
    """One query of one head on one device, seeing every key."""
    rules = make_rules("palm_2d", make_mesh(MeshConfig(data=1, tensor=1)))
    q, k, v = (jnp.asarray(x, jnp.bfloat16)[None] for x in (q[:, None], k[:, None], v[:, None]))
    args = jax.device_put((q, k, v, jnp.ones((1, 1, k.shape[1]), bool)), rules())
    out = attend(*args, rules)
    assert out.dtype == jnp.bfloat16
    return np.asarray(out, np.float32)[0, 0, 0]


def test_bf16_weights_are_summed_in_fp32():
    """A thousand equal keys: in bf16 a sum of equal terms stops growing at 256 of them."""
    out = in_bf16(np.zeros((1, 2)), np.zeros((1000, 2)), np.ones((1000, 2)))
    np.testing.assert_allclose(out, 1.0, rtol=2**-7)


def test_bf16_scores_are_not_rounded():
    """Scores of 257 and 256, which are one number in bf16: weights e / (1 + e) and 1 / (1 + e)."""
    q, k = np.array([[2.0, 2.0, 0.0, 0.0]]), np.array([[256.0, 1.0, 0.0, 0.0], [256.0, 0.0, 0.0, 0.0]])
    out = in_bf16(q, k, np.array([[1.0, 0, 0, 0], [0, 1.0, 0, 0]]))
    np.testing.assert_allclose(out, [np.e / (1 + np.e), 1 / (1 + np.e), 0, 0], rtol=2**-7)


@pytest.mark.parametrize(("data", "tensor"), [(1, 1), (2, 4)])
@pytest.mark.parametrize("kv_heads", [1, 2, 4], ids=["multi-query", "grouped", "multi-head"])
def test_gradients_are_those_of_its_steps(kv_heads, data, tensor):
    """What the kernel's own backward pass gives is what JAX derives from weights and weighted values, with a bias and a
    query that sees no key."""
    q, k, v, mask = inputs(B, kv_heads=kv_heads)
    mask[1, 3] = False
    random = np.random.default_rng(1)
    bias, dy = random.normal(size=(1, T, S, N)).astype(np.float32), random.normal(size=q.shape).astype(np.float32)
    rules = make_rules("palm_2d", make_mesh(MeshConfig(data=data, tensor=tensor)))
    heads = rules("batch", "length", "heads", None)
    q, dy = jax.device_put((q, dy), heads)
    k, v = jax.device_put((k, v), rules("batch", "length", "heads" if kv_heads % tensor == 0 else None, None))
    mask = jax.device_put(mask, rules("batch", "length", None))
    bias = jax.device_put(bias, rules(None, "length", None, "heads"))

    def whole(q, k, v, bias):
        return attention(q, (None, k), (None, v), mask, bias, rules, True)

    def by_steps(q, k, v, bias):
        return weighted_values(attention_weights(q, k, mask, bias, rules), v, rules)

    def gradients(function):
        return jax.jit(lambda *given: jax.vjp(function, *given)[1](dy))(q, k, v, bias)

    for found, expected in zip(gradients(whole), gradients(by_steps), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-6 * np.abs(expected).max())
        assert found.sharding.spec == expected.sharding.spec
