"""Learning rates against the papers' formulas."""

import jax.numpy as jnp
import numpy as np
import pytest

from pathways_lm.config import OptimizerConfig
from pathways_lm.train.schedule import make_schedule


def rates(steps, num_steps, tokens_per_step=0, **config):
    schedule = make_schedule(OptimizerConfig(**config), num_steps, tokens_per_step)
    return [float(schedule(jnp.int32(k))) for k in steps]


@pytest.mark.parametrize("k", [1, 2, 9_999, 10_000, 10_001, 40_000, 255_000])
def test_palm(k):
    """1e-2 for ten thousand steps, then 1 / sqrt(k) (section 5.1)."""
    np.testing.assert_allclose(rates([k], 255_000), [1 / np.sqrt(max(k, 10_000))], rtol=1e-6)


def test_rsqrt_of_another_rate():
    told = rates((1, 100, 400), 1000, learning_rate=0.3, hold_steps=100)
    np.testing.assert_allclose(told, [0.3, 0.3, 0.15], rtol=1e-6)


def test_rsqrt_with_warm_up():
    """Up in a line until the rate begins to fall, as in ST-MoE."""
    told = rates((1, 50, 100, 400), 1000, learning_rate=0.3, hold_steps=100, warmup_steps=100)
    np.testing.assert_allclose(told, [0.003, 0.15, 0.3, 0.15], rtol=1e-6)


@pytest.mark.parametrize("k", [1, 5, 20, 21, 60, 99, 100, 150])
@pytest.mark.parametrize("final", [0.1, 0.0, 1 / 15])
def test_cosine(k, final):
    """Up in a line over 20 steps, then half a cosine to a share of the rate at step 100, where it stays."""
    config = {"schedule": "cosine", "learning_rate": 2e-3, "warmup_steps": 20, "final_fraction": final}
    turned = np.pi * min(max(k - 20, 0) / 80, 1)
    expected = 2e-3 * min(k / 20, final + (1 - final) * (1 + np.cos(turned)) / 2)
    np.testing.assert_allclose(rates([k], 100, **config), [expected], rtol=1e-5, atol=1e-10)


def test_linear():
    config = {"schedule": "linear", "learning_rate": 4.0, "warmup_steps": 20, "final_fraction": 0.25}
    told = rates((10, 20, 40, 60, 100, 120), 100, **config)
    np.testing.assert_allclose(told, [2, 4, 3.25, 2.5, 1, 1], rtol=1e-6)


def test_warm_up_stable_decay():
    config = {"schedule": "wsd", "learning_rate": 4.0, "warmup_steps": 20, "hold_steps": 40, "decay_steps": 40}
    told = rates((10, 20, 21, 60, 70, 80, 100), 100, final_fraction=0.0, **config)
    np.testing.assert_allclose(told, [2, 4, 4, 4, 3, 2, 0], rtol=1e-6, atol=1e-6)


def test_constant():
    config = {"schedule": "constant", "learning_rate": 4.0}
    np.testing.assert_allclose(rates((1, 2, 100), 100, **config), [4, 4, 4])
    np.testing.assert_allclose(rates((1, 2, 100), 100, warmup_steps=4, **config), [1, 2, 4])


def test_warm_up_in_tokens():
    """MT-NLG's: over a billion tokens, at 1,920 sequences of 2,048 tokens, 254.3 steps; not rounded."""
    tokens = 1920 * 2048
    config = {"schedule": "cosine", "learning_rate": 5e-5, "warmup_tokens": 1_000_000_000}
    told = rates((1, 100, 254), 86_000, tokens, **config)
    np.testing.assert_allclose(told, [5e-5 * k * tokens / 1e9 for k in (1, 100, 254)], rtol=1e-6)
    np.testing.assert_allclose(rates([255], 86_000, tokens, **config), [5e-5], rtol=1e-6)


@pytest.mark.parametrize("schedule", ["rsqrt", "cosine", "linear", "wsd", "constant"])
def test_no_jumps(schedule):
    """From one step to the next a rate rises by no more than the warm-up's slope and never falls by more than 4%."""
    config = {"schedule": schedule, "learning_rate": 1.0, "warmup_steps": 50, "hold_steps": 100, "decay_steps": 50}
    told = np.array(rates(range(1, 201), 200, **config))
    assert told[0] == pytest.approx(1 / 50)
    assert told.max() == pytest.approx(1.0)
    steps = np.diff(told)
    assert steps.max() < 1 / 50 + 1e-6
    assert steps.min() > -0.04
