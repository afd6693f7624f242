"""Shares against the papers' formulas, worked out by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathways_lm.config import MixingConfig
from pathways_lm.data.balance import Balance
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
    shares = {str(place): part / sum(parts) for place, part in enumerate(parts)}
    found = rounded(shares)
    assert sum(found.values()) == pytest.approx(1)
    # Of two digits before they were brought to a sum of 1: half of the last of 10 to 99 is a twentieth at most.
    for task, part in shares.items():
        assert (found[task] > 0) == (part > 0)
        least = 1e-3 * (part > 0)
        assert 0.95 / 1.06 * part <= found[task] <= 1.05 / 0.95 * max(part, least) * (1 + 1e-9)


def test_last_digits_decide_nothing():
    expected = {"a": pytest.approx(0.3), "b": pytest.approx(0.7)}
    assert rounded({"a": 0.3, "b": 0.7}) == expected
    assert rounded({"a": 0.3 + 4e-3, "b": 0.7 - 4e-3}) == rounded({"a": 0.3, "b": 0.7})
    assert rounded({"a": 1e-6, "b": 1 - 1e-6}) == {"a": pytest.approx(1 / 1001), "b": pytest.approx(1000 / 1001)}


def balance(losses, intervals, **changes):
    """What has become of equal shares."""
    weights = ",".join(f"{task}=1" for task in losses)
    found = Balance(MixingConfig(weights=weights, **changes), SIZES, SEQUENCES, 1000)
    for number in range(intervals):
        found.note(losses, dict.fromkeys(losses, 1.0))
        found.change(8 * number)
    return found


def test_changes_below_the_digits_add_up():
    """0.001 nats of excess for 400 intervals: e to the power of 0.4, though one of them is not to be seen."""
    how = {"rule": "excess_loss", "rate": 1.0, "smoothing": 0.0}
    losses = {"a": 1.001, "b": 1.0, "c": 1.0}
    assert balance(losses, 1, **how).mixture.shares == dict.fromkeys("abc", pytest.approx(1 / 3))
    raised = math.exp(0.4)
    assert balance(losses, 400, **how).mixture.shares["a"] == pytest.approx(raised / (raised + 2), rel=0.05)


@pytest.mark.parametrize("rule", ["excess_loss", "loss_ratio"])
def test_shares_that_follow_losses_need_two_tasks(rule):
    with pytest.raises(ConfigError, match=f"mixing.rule='{rule}' moves shares between tasks, and 'a' is the only one"):
        Balance(MixingConfig(rule=rule, weights="a=1"), SIZES, SEQUENCES, 1000)


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
