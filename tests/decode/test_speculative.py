"""A draft that writes ahead changes how fast, and not what."""

import jax
import numpy as np
import pytest
from scipy.stats import chisquare

from pathways_lm.decode.form import Form
from pathways_lm.decode.generate import Generator
from pathways_lm.decode.sampling import Sampler
from pathways_lm.decode.speculative import Pair, Speculator, accept
from pathways_lm.errors import ConfigError

PROMPTS = [[7, 8, 9], [], list(range(40, 80)), [200], [3] * 31]
FORM = Form(250, 1)
DRAWS = 100_000


def test_what_is_accepted_is_distributed_as_the_target():
    """Two drafted tokens of five: each of the three that may come of a round, given those before it."""
    rng = np.random.default_rng(0)
    wanted, drafted = rng.dirichlet(np.ones(5), 3), rng.dirichlet(np.ones(5), 2)
    wanted[1, 3] = 0  # never wanted, though drafted
    wanted /= wanted.sum(1, keepdims=True)
    tokens = np.stack([rng.choice(5, DRAWS, p=p) for p in drafted], axis=1).astype(np.int32)
    spread = lambda p: np.broadcast_to(p.astype(np.float32), (DRAWS, *p.shape))  # noqa: E731
    keys = jax.random.split(jax.random.key(3), DRAWS)
    out, kept = jax.jit(accept)(spread(wanted), spread(drafted), tokens, keys)
    out, kept = np.asarray(out), np.asarray(kept)
    for place in range(3):
        reached = kept >= place
        counts = np.bincount(out[reached, place], minlength=5)
        possible = wanted[place] > 0
        assert np.all(counts[~possible] == 0)
        assert chisquare(counts[possible], counts.sum() * wanted[place][possible]).pvalue > 0.01
    # What arXiv:2211.17192 (corollary 3.6) says of the chance that the first stays.
    stays = np.minimum(wanted[0], drafted[0]).sum()
    assert abs(np.mean(kept >= 1) - stays) < 4 * np.sqrt(stays * (1 - stays) / DRAWS)


@pytest.fixture(scope="module")
def large(make, draw):
    model = make()
    return Generator(model, FORM, 128, rows=3), draw(model, 1)


@pytest.fixture(scope="module")
def little(make, draw):
    model = make(num_layers=1)
    params = draw(model, 1)
    return Generator(model, FORM, 128, rows=3), params


@pytest.mark.parametrize("draft", ["little", "large"])
def test_greedy_is_the_targets_greedy(large, little, draft):
    """Also in a second batch of rows, and where a sequence ends; with itself as the draft, everything stays."""
    generator, params = large
    other, other_params = large if draft == "large" else little
    greedy = Sampler(temperature=0)
    expected = generator.write(params, PROMPTS, greedy, 20, jax.random.key(0))
    written, tokens_a_step = Speculator(generator, other, 3).write(
        Pair(params, other_params), PROMPTS, greedy, 20, jax.random.key(0)
    )
    assert [one.tokens for one in written] == [one.tokens for one in expected]
    assert [one.why for one in written] == [one.why for one in expected]
    assert tokens_a_step == pytest.approx(4) if draft == "large" else 1 <= tokens_a_step <= 4


def test_drawn_as_by_the_target_alone(large, little):
    """The first two tokens of 4,000 draws, in six classes each, beside as many of the target alone."""
    sampler = Sampler(temperature=0.7, top_k=6)
    (generator, params), (draft, draft_params) = large, little
    prompts = [[7, 8, 9]] * 4000
    many = Generator(generator.model, FORM, 32, rows=2000)
    ahead = Generator(draft.model, FORM, 32, rows=2000)
    alone = many.write(params, prompts, sampler, 2, jax.random.key(1))
    found, _ = Speculator(many, ahead, 2).write(Pair(params, draft_params), prompts, sampler, 2, jax.random.key(2))
    pairs = [[tuple(one.tokens) for one in written] for written in (alone, found)]
    known = sorted(set(pairs[0]) | set(pairs[1]))
    counts = np.array([[each.count(pair) for pair in known] for each in pairs])
    # Rare pairs together, so that each class has enough for the test.
    common = counts.sum(0) >= 40
    counts = np.concatenate([counts[:, common], counts[:, ~common].sum(1, keepdims=True)], axis=1)
    counts = counts[:, counts.sum(0) > 0]
    from scipy.stats import chi2_contingency

    assert counts.shape[1] > 8
    assert chi2_contingency(counts).pvalue > 0.01


def test_what_cannot_be(large, little, make):
    with pytest.raises(ConfigError, match="at least 1 token ahead"):
        Speculator(large[0], little[0], 0)
    other = Generator(make(), Form(249, 1), 128)
    with pytest.raises(ConfigError, match="another vocabulary"):
        Speculator(large[0], other)
    with pytest.raises(ConfigError, match="not with a draft model"):
        Speculator(large[0], little[0]).write(
            Pair(large[1], little[1]), PROMPTS, Sampler(repetition_penalty=1.1), 5, jax.random.key(0)
        )
