"""Learning rates against the paper's formulas."""

import jax.numpy as jnp
import numpy as np
import pytest

from pathways_lm.config import OptimizerConfig
from pathways_lm.train.schedule import make_schedule


@pytest.mark.parametrize("k", [1, 2, 9_999, 10_000, 10_001, 40_000, 255_000])
def test_palm(k):
    """1e-2 for ten thousand steps, then 1 / sqrt(k) (section 5.1)."""
    schedule = make_schedule(OptimizerConfig(), 255_000)
    np.testing.assert_allclose(schedule(jnp.int32(k)), 1 / np.sqrt(max(k, 10_000)), rtol=1e-6)


def test_rsqrt_of_another_rate():
    schedule = make_schedule(OptimizerConfig(learning_rate=0.3, hold_steps=100), 1000)
    rates = [float(schedule(jnp.int32(k))) for k in (1, 100, 400)]
    np.testing.assert_allclose(rates, [0.3, 0.3, 0.15], rtol=1e-6)


@pytest.mark.parametrize("k", [1, 5, 20, 21, 60, 99, 100, 150])
def test_cosine(k):
    """Up in a line over 20 steps, then half a cosine to a tenth at step 100, where it stays."""
    schedule = make_schedule(OptimizerConfig(schedule="cosine", learning_rate=2e-3, warmup_steps=20), 100)
    turned = np.pi * min(max(k - 20, 0) / 80, 1)
    expected = 2e-3 * min(k / 20, 0.1 + 0.9 * (1 + np.cos(turned)) / 2)
    np.testing.assert_allclose(schedule(jnp.int32(k)), expected, rtol=1e-5)
