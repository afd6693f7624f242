"""Assignment, places, drops, gates and losses against loops in numpy."""

import importlib.util
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pathways_lm.config import MoEConfig
from pathways_lm.layers.moe.losses import router_sums
from pathways_lm.layers.moe.router import capacity, route

SPEC = importlib.util.spec_from_file_location("reference", Path(__file__).parent / "reference.py")
reference = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(reference)


@st.composite
def cases(draw):
    # Few shapes, since each is compiled.
    experts = draw(st.sampled_from([1, 3, 6]))
    config = MoEConfig(
        num_experts=experts,
        top_k=draw(st.integers(1, min(experts, 3))),
        router=draw(st.sampled_from(["top_k", "top_k", "top_k", "expert_choice"])),
        renormalise=draw(st.booleans()),
        capacity_factor=draw(st.sampled_from([0.1, 0.5, 1.0, 1.25, 2.0, 100.0])),
        min_capacity=draw(st.integers(1, 3)),
        balance=draw(st.sampled_from(["switch", "gshard"])),
    )
    groups, tokens = 2, draw(st.sampled_from([1, 5, 12]))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    logits = random.normal(scale=draw(st.sampled_from([0.1, 1.0, 4.0])), size=(groups, tokens, experts))
    return config, logits.astype(np.float32), random.random((groups, tokens)) < draw(st.sampled_from([1.0, 0.7, 0.0]))


@partial(jax.jit, static_argnums=(0, 1))
def tell(config, places, logits, valid):
    probabilities = jax.nn.softmax(logits, axis=-1)
    routing = route(config, probabilities, valid, places, None)
    return routing, router_sums(config, logits, probabilities, routing, valid)


@settings(max_examples=100)
@given(cases())
def test_every_choice(case):
    config, logits, valid = case
    G, S, E = logits.shape
    places = capacity(config, S, training=True)
    assert places == reference.places_of(config.capacity_factor, E, S, config.min_capacity)
    routing, sums = jax.device_get(tell(config, places, logits, valid))
    balance = z = entropy = dropped = 0.0
    load = np.zeros(E)
    for g in range(G):
        if config.router == "expert_choice":
            expected = reference.experts_choose(logits[g], valid[g], places)
        else:
            expected = reference.route(logits[g], valid[g], config.top_k, places, config.renormalise)
        for s in range(S):
            found = [
                (int(e), int(slot), pytest.approx(float(gate), rel=1e-5), bool(kept))
                for e, slot, gate, wanted, kept in zip(*(array[g, s] for array in routing), strict=True)
                if wanted
            ]
            assert found == expected[s]
            for expert, _, _, kept in expected[s]:
                load[expert] += 1
                dropped += not kept
        form = {"switch": reference.switch_balance, "gshard": reference.gshard_balance}[config.balance]
        if config.router == "top_k":
            balance += form(logits[g].astype(np.float64), valid[g], expected) * valid[g].sum()
        for s in np.flatnonzero(valid[g]):
            p = reference.softmax(logits[g, s].astype(np.float64))
            z += np.log(np.exp(logits[g, s].astype(np.float64)).sum()) ** 2
            entropy -= (p * np.log(p)).sum()
    np.testing.assert_allclose(sums.balance, balance, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(sums.z, z, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(sums.entropy, entropy, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(sums.load_E, load)
    assert (sums.dropped, sums.choices, sums.tokens) == (dropped, load.sum(), valid.sum())


@pytest.mark.parametrize(("balance", "expected"), [("switch", 1.0), ("gshard", 1 / 64)])
def test_even_use(balance, expected):
    """Every token sure of its expert, experts used evenly: 1 in Switch's form, 1 / E^2 in GShard's."""
    config = MoEConfig(num_experts=8, balance=balance)
    logits = jnp.asarray(np.tile(50.0 * np.eye(8), (2, 3, 1)).reshape(2, 24, 8), jnp.float32)
    valid = jnp.ones((2, 24), bool)
    probabilities = jax.nn.softmax(logits, axis=-1)
    routing = route(config, probabilities, valid, 24, None)
    sums = router_sums(config, logits, probabilities, routing, valid)
    assert float(sums.balance / sums.tokens) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("policy", "share"),
    [("all", lambda g2: 1.0), ("random", lambda g2: min(1, 2 * g2)), ("threshold", lambda g2: min(1, g2 / 0.2))],
)
def test_second_choices(policy, share):
    """Kept with their policy's probability in training, always in evaluation; no place is taken by one left out."""
    config = MoEConfig(num_experts=4, top_k=2, second_expert=policy)
    g2 = 0.1
    row = np.log([1 - g2, g2, 1e-9, 1e-9])
    logits = jnp.asarray(np.tile(row, (50, 200, 1)), jnp.float32)
    probabilities, valid = jax.nn.softmax(logits, axis=-1), jnp.ones((50, 200), bool)
    trained = route(config, probabilities, valid, 200, jax.random.key(0))
    assert np.all(trained.wanted_GSK[..., 0])
    drawn = np.asarray(trained.wanted_GSK[..., 1])
    # Four standard deviations of 10,000 draws.
    assert abs(drawn.mean() - share(g2)) <= 4 * np.sqrt(0.25 / drawn.size)
    slots = np.where(drawn, np.cumsum(drawn, axis=1) - 1, -1)
    np.testing.assert_array_equal(np.where(drawn, trained.slots_GSK[..., 1], -1), slots)
    assert np.all(route(config, probabilities, valid, 200, None).wanted_GSK)


@pytest.mark.parametrize(
    ("factor", "tokens", "minimum", "expected"),
    [(1.0, 100, 1, 12), (1.25, 8192, 4, 1280), (0.01, 100, 4, 4), (100.0, 16, 4, 16), (2.0, 2048, 4, 512)],
)
def test_capacity(factor, tokens, minimum, expected):
    """floor(tokens x factor / 8 experts), within minimum and group; evaluation has a factor of its own."""
    config = MoEConfig(num_experts=8, capacity_factor=factor, eval_capacity_factor=1.0, min_capacity=minimum)
    assert capacity(config, tokens, training=True) == expected
    assert capacity(config, tokens, training=False) == max(tokens // 8, minimum)
