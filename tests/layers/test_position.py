"""Rotary positions as the complex rotation they are (RoFormer, arXiv:2104.09864), and T5's buckets of distances."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathways_lm.layers.position import relative_buckets, rotary_angles, rotate

H = 8


def turned(x, positions, base: float = 10_000.0):
    return np.asarray(rotate(jnp.asarray(x), rotary_angles(jnp.asarray(positions), x.shape[-1], base)))


def test_is_a_rotation_of_complex_numbers():
    """x_i + i x_{i + H/2}, times exp(i position / base^(2i/H)), at positions up to PaLM's 2,048."""
    x = np.random.default_rng(0).normal(size=(2, 4, 3, H)).astype(np.float32)
    positions = np.array([[0, 1, 2, 3], [5, 100, 1023, 2047]])
    for base in (10_000.0, 77.0):
        numbers = x[..., : H // 2] + 1j * x[..., H // 2 :].astype(np.float64)
        angles = positions[:, :, None, None] / base ** (np.arange(0, H, 2) / H)
        expected = numbers * np.exp(1j * angles)
        expected = np.concatenate([expected.real, expected.imag], -1)
        near, far = turned(x, positions, base)
        np.testing.assert_allclose(near, expected[0], atol=1e-6)
        # fp32 holds an angle of 2,047 to 1e-4.
        np.testing.assert_allclose(far, expected[1], atol=2.5e-4 * np.abs(x).max())


@given(st.integers(0, 2000), st.integers(0, 2000), st.integers(0, 40), st.integers(0, 2**31))
def test_scores_depend_only_on_the_distance(first, second, distance, seed):
    """And are not changed where there is none."""
    q, k = np.random.default_rng(seed).normal(size=(2, 1, 1, 1, H)).astype(np.float32)

    def score(query_at, key_at):
        return np.vdot(turned(q, [[query_at]]), turned(k, [[key_at]]))

    size = np.linalg.norm(q) * np.linalg.norm(k)
    np.testing.assert_allclose(score(first + distance, first), score(second + distance, second), atol=1e-3 * size)
    np.testing.assert_allclose(score(first, first), np.vdot(q, k), atol=1e-5 * size)


def test_type_is_kept_and_angles_are_fp32():
    angles = rotary_angles(jnp.array([[2047]]), H, 10_000.0)
    assert {angle.dtype for angle in angles} == {jnp.dtype(jnp.float32)}
    assert rotate(jnp.ones((1, 1, 1, H), jnp.bfloat16), angles).dtype == jnp.bfloat16


@pytest.mark.parametrize("causal", [True, False])
def test_relative_buckets(causal):
    """T5 (arXiv:1910.10683, section 2.1): as many buckets of one distance as of ranges that end at 128."""
    query, keys = np.array([[300]]), np.arange(601)[None]
    actual = np.asarray(relative_buckets(jnp.asarray(query), jnp.asarray(keys), 32, 128, causal))[0, 0]
    of_one_side = 32 if causal else 16
    exact = of_one_side // 2
    for key, bucket in zip(keys[0], actual, strict=True):
        behind = key - 300
        distance = max(-behind, 0) if causal else abs(behind)
        expected = distance
        if distance >= exact:
            # Exact where the logarithm is a whole number: at powers of two of the first range's beginning.
            steps = math.log(distance / exact) / math.log(128 / exact) * (of_one_side - exact)
            expected = min(exact + math.floor(steps + 1e-9), of_one_side - 1)
        if not causal and behind > 0:
            expected += 16
        assert bucket == expected, key
    # By hand, from the paper's figures: all beyond 128 are one.
    assert actual[300 - 128] == actual[0] == of_one_side - 1
