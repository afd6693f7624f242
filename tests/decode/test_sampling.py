"""Draws against distributions computed in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from pathways_lm.decode.sampling import History, Sampler
from pathways_lm.errors import ConfigError

# Twelve tokens in no order, with one that is impossible. No two are equally likely.
LOGITS = np.array([0.3, -1.2, 2.1, 0.9, -np.inf, 1.4, -0.4, 0.1, 1.9, -2.5, 0.6, -0.9], np.float32)
DRAWS = 100_000


def exact(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, typical_p=1.0) -> np.ndarray:
    """Temperature, the k likeliest, the fewest likeliest that make up top_p of those, what is min_p times as likely as
    the likeliest, the fewest with the least | surprise - entropy | that make up typical_p: one after the other.
    """
    p = np.exp(LOGITS.astype(np.float64) / temperature)
    order = np.argsort(-p)
    if top_k:
        p[order[top_k:]] = 0
    p /= p.sum()
    p[order[np.searchsorted(np.cumsum(p[order]), top_p) + 1 :]] = 0
    p[p < min_p * p.max()] = 0
    p /= p.sum()
    surprise = np.where(p > 0, -np.log(np.maximum(p, 1e-300)), np.inf)
    entropy = -sum(each * np.log(each) for each in p if each)
    order = np.argsort(np.abs(surprise - entropy))
    p[order[np.searchsorted(np.cumsum(p[order]), typical_p) + 1 :]] = 0
    return p / p.sum()


def draw(sampler: Sampler, logits: np.ndarray = LOGITS, draws: int = DRAWS) -> np.ndarray:
    keys = jax.random.split(jax.random.key(7), draws)
    return np.asarray(jax.jit(sampler.choose)(jnp.broadcast_to(logits, (draws, logits.size)), keys))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"top_k": 3},
        {"temperature": 0.7, "top_k": 5},
        {"top_p": 0.9},
        {"top_p": 0.5},
        {"temperature": 1.7, "top_p": 0.8},
        {"temperature": 1.3, "top_k": 6, "top_p": 0.75},
        {"min_p": 0.1},
        {"temperature": 1.5, "min_p": 0.3},
        {"typical_p": 0.9},
        {"typical_p": 0.3},
        {"temperature": 1.4, "top_k": 9, "top_p": 0.95, "min_p": 0.05, "typical_p": 0.8},
    ],
    ids=str,
)
def test_distribution(settings):
    expected = exact(**settings)
    counts = np.bincount(draw(Sampler(**settings)), minlength=LOGITS.size)
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
    np.testing.assert_array_equal(Sampler(top_k=top_k).logits(LOGITS[None]), LOGITS[None])


def test_rows_do_not_see_each_other():
    sampler = Sampler(temperature=0.8, top_k=4, top_p=0.9)
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
        *((name, value) for name in ("top_p", "typical_p") for value in (0, -0.5, 1.001, float("nan"))),
        *(("min_p", value) for value in (-0.1, 1.1, float("nan"))),
        *(("repetition_penalty", value) for value in (0, -1.0, float("inf"), float("nan"))),
        *((name, float("nan")) for name in ("presence_penalty", "frequency_penalty")),
        ("no_repeat_ngram", -1),
    ],
)
def test_values_that_make_no_sense(field, value):
    with pytest.raises(ConfigError, match=f"^{field} must be .*{value}"):
        Sampler(**{field: value})


# Sequences over twelve tokens: prompts of 3, 0 and 5, of 6, 4 and 5 tokens in all. What is behind them does not count.
SEQUENCES = [[2, 5, 2, 7, 2, 5], [1, 1, 1, 8], [0, 3, 0, 3, 0]]
PROMPTS = [3, 0, 5]


def history() -> History:
    tokens = np.full((3, 9), 11, np.int32)
    for row, sequence in enumerate(SEQUENCES):
        tokens[row, : len(sequence)] = sequence
    length = np.array([len(sequence) for sequence in SEQUENCES], np.int32)
    return History(tokens, length, length - np.array(PROMPTS, np.int32))


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_no_ngram_comes_twice(n):
    logits = np.random.default_rng(1).normal(size=(3, 12)).astype(np.float32)
    found = np.asarray(Sampler(no_repeat_ngram=n).logits(logits, history()))
    for row, sequence in enumerate(SEQUENCES):
        seen = {tuple(sequence[start : start + n]) for start in range(len(sequence) - n + 1)}
        for token in range(12):
            again = (*sequence[len(sequence) - n + 1 :], token)[-n:] in seen and len(sequence) >= n - 1
            assert (found[row, token] == -np.inf) == again, (row, token)
            assert again or found[row, token] == logits[row, token]


def test_penalties():
    logits = np.random.default_rng(2).normal(size=(3, 12)).astype(np.float32)
    sampler = Sampler(repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.2, temperature=0.8)
    expected = logits.astype(np.float64)
    for row, (sequence, prompt) in enumerate(zip(SEQUENCES, PROMPTS, strict=True)):
        for token in set(sequence):
            expected[row, token] *= 1 / 1.3 if expected[row, token] > 0 else 1.3
        for token in set(sequence[prompt:]):
            expected[row, token] -= 0.5 + 0.2 * sequence[prompt:].count(token)
    np.testing.assert_allclose(sampler.logits(logits, history()), expected / 0.8, rtol=1e-6, atol=1e-6)


def test_the_likeliest_after_penalties():
    logits = np.zeros((3, 12), np.float32)
    logits[:, 2], logits[:, 9] = 1.0, 0.9
    keys = jax.random.split(jax.random.key(0), 3)
    chosen = Sampler(temperature=0, presence_penalty=0.5).choose(logits, keys, history())
    assert chosen.tolist() == [9, 2, 2]
