"""Shares against the papers' formulas, worked out by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathways_lm.config import MixingConfig
from pathways_lm.data.shares import excess_loss, first_shares, loss_ratio, parse, proportional, rounded, unimax
from pathways_lm.errors import ConfigError

SIZES = {"a": 600.0, "b": 300.0, "c": 100.0}
SEQUENCES = {"a": 60, "b": 30, "c": 10}


def test_proportional():
    assert proportional(SIZES, SEQUENCES, 0, 1.0) == {"a": 0.6, "b": 0.3, "c": 0.1}


def test_limit():
    """T5's K (section 3.5.2): a counts as 40 sequences of 10 bytes."""
    assert proportional(SIZES, SEQUENCES, 40, 1.0) == pytest.approx({"a": 40 / 80, "b": 30 / 80, "c": 10 / 80})


def test_temperature():
    roots = {task: math.sqrt(size) for task, size in SIZES.items()}
    expected = {task: root / sum(roots.values()) for task, root in roots.items()}
    assert proportional(SIZES, SEQUENCES, 0, 2.0) == pytest.approx(expected)


def test_unimax():
    """Of 90 sequences, c takes its 20, the others 35 each; of 200, b's cap of 60 leaves a its 120."""
    assert unimax(SEQUENCES, 2.0, 90) == pytest.approx({"a": 35 / 90, "b": 35 / 90, "c": 20 / 90})
    assert unimax(SEQUENCES, 2.0, 200) == pytest.approx({"a": 0.6, "b": 0.3, "c": 0.1})
    assert unimax(SEQUENCES, 100.0, 90) == pytest.approx(dict.fromkeys("abc", 1 / 3))


def test_excess_loss():
    """DoReMi, algorithm 1, by hand: excess 1 and 0 (its clip) at equal shares."""
    found = excess_loss({"a": 0.5, "b": 0.5}, {"a": 3.0, "b": 1.0}, {"a": 2.0, "b": 1.5}, 1.0, 0.1)
    raised = math.e / (math.e + 1)
    assert found == pytest.approx({"a": 0.9 * raised + 0.05, "b": 0.9 * (1 - raised) + 0.05})


def test_loss_ratio():
    found = loss_ratio({"a": 0.5, "b": 0.5}, {"a": 1.0, "b": 2.0}, {"a": 2.0, "b": 2.0}, 2.0, 0.0)
    assert found == pytest.approx({"a": 0.2, "b": 0.8})


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8).filter(lambda parts: sum(parts) > 0.01))
def test_rounded(parts):
    shares = {str(place): part for place, part in enumerate(parts)}
    found = rounded(shares)
    assert sum(round(1000 * part) for part in found.values()) == 1000
    for task, part in shares.items():
        assert found[task] * 1000 == pytest.approx(round(found[task] * 1000))
        assert (found[task] > 0) == (part > 0)
        # Tasks that were given their least may take it from the largest.
        assert abs(found[task] - part / sum(parts)) <= 0.001 * len(parts)


def test_last_bits_decide_nothing():
    assert rounded({"a": 0.3, "b": 0.7}) == rounded({"a": 0.3 + 1e-7, "b": 0.7}) == {"a": 0.3, "b": 0.7}


def test_what_is_not_to_be_learned_stays_so():
    assert loss_ratio({"a": 1.0, "b": 0.0}, {"a": 1.0}, {"a": 2.0}, 1.0, 0.5) == {"a": 1.0, "b": 0.0}
    assert excess_loss({"a": 1.0, "b": 0.0}, {"a": 1.0}, {}, 1.0, 0.5) == {"a": 1.0, "b": 0.0}


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ("a=1,d=2", "mixing.weights has no task 'd'"),
        ("a=-1", "mixing.weights: a=-1 must be 0 or above"),
        ("a=0,b=0", "mixing.weights='a=0,b=0' are all 0: nothing would be learned from"),
        ("a", "mixing.weights='a' must read task=number,…"),
        ("a=x", "mixing.weights: 'x' of task 'a' is no number"),
        ("a=nan", "mixing.weights: a=nan must be 0 or above"),
    ],
)
def test_weights_that_cannot_be(weights, said):
    with pytest.raises(ConfigError) as told:
        parse(weights, "mixing.weights", SIZES)
    assert said in str(told.value)


def test_fixed_without_weights():
    with pytest.raises(ConfigError, match=r"'fixed' needs mixing\.weights, as a=1,b=1,c=1"):
        first_shares(MixingConfig(rule="fixed"), SIZES, SEQUENCES, 10)
