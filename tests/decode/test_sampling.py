"""Draws against distributions computed in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from pathways_lm.decode.sampling import Sampler
from pathways_lm.errors import ConfigError

# Twelve tokens in no order, with one that is impossible. No two are equally likely.
LOGITS = np.array([0.3, -1.2, 2.1, 0.9, -np.inf, 1.4, -0.4, 0.1, 1.9, -2.5, 0.6, -0.9], np.float32)
DRAWS = 100_000


def exact(temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """Temperature, then the k likeliest, then the fewest likeliest that make up top_p of those."""
    p = np.exp(LOGITS.astype(np.float64) / temperature)
    order = np.argsort(-p)
    if top_k:
        p[order[top_k:]] = 0
    p /= p.sum()
    needed = np.searchsorted(np.cumsum(p[order]), top_p) + 1
    p[order[needed:]] = 0
    return p / p.sum()


def draw(sampler: Sampler, logits: np.ndarray = LOGITS, draws: int = DRAWS) -> np.ndarray:
    keys = jax.random.split(jax.random.key(7), draws)
    return np.asarray(jax.jit(sampler.choose)(jnp.broadcast_to(logits, (draws, logits.size)), keys))


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [
        (1.0, 0, 1.0),
        (0.5, 0, 1.0),
        (2.0, 0, 1.0),
        (1.0, 3, 1.0),
        (0.7, 5, 1.0),
        (1.0, 0, 0.9),
        (1.0, 0, 0.5),
        (1.7, 0, 0.8),
        (1.3, 6, 0.75),
    ],
)
def test_distribution(temperature, top_k, top_p):
    expected = exact(temperature, top_k, top_p)
    counts = np.bincount(draw(Sampler(temperature=temperature, top_k=top_k, top_p=top_p)), minlength=LOGITS.size)
    # Only what may be drawn is drawn, and in the right proportions.
    assert np.all(counts[expected == 0] == 0)
    kept = expected > 0
    assert chisquare(counts[kept], DRAWS * expected[kept]).pvalue > 0.01


@pytest.mark.parametrize(
    "sampler",
    [Sampler(temperature=0), Sampler(top_k=1), Sampler(top_p=1e-6), Sampler(temperature=1e-3), Sampler(min_p=1.0)],
)
def test_always_the_likeliest(sampler):
    assert np.all(draw(sampler, draws=1000) == np.argmax(LOGITS))


@pytest.mark.parametrize("top_k", [0, 11, 12, 13, 1000])
def test_nothing_is_left_out(top_k):
    """As many as there are, or more, are all of them; so is the whole probability."""
    np.testing.assert_array_equal(Sampler(1.0, top_k, 1.0).logits(LOGITS[None]), LOGITS[None])


def test_rows_do_not_see_each_other():
    sampler = Sampler(0.8, 4, 0.9)
    rows = np.random.default_rng(0).normal(size=(5, 12)).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), 5)
    together = np.asarray(sampler.choose(rows, keys))
    alone = [int(sampler.choose(rows[i : i + 1], keys[i : i + 1])[0]) for i in range(5)]
    assert together.tolist() == alone
    np.testing.assert_array_equal(sampler.logits(rows)[2], sampler.logits(rows[2:3])[0])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("temperature", value) for value in (-0.1, float("nan"), float("inf"))),
        *(("top_k", value) for value in (-1, -100)),
        *(("top_p", value) for value in (0, -0.5, 1.001, float("nan"))),
    ],
)
def test_values_that_make_no_sense(field, value):
    with pytest.raises(ConfigError, match=f"^{field} must be .*{value}"):
        Sampler(**{field: value})
