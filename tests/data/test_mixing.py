"""Whose turn it is, counted by hand."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pathways_lm.data.mixing import CYCLE, Mixture

shares = st.lists(st.floats(0, 1), min_size=1, max_size=5).filter(lambda parts: sum(parts) > 0.1)


def mixture(parts) -> Mixture:
    return Mixture.start({f"task{place}": part for place, part in enumerate(parts)})


@settings(max_examples=30, deadline=None)
@given(shares, st.integers(0, 10**7), st.integers(1, 300))
def test_each_sequence_comes_once_and_in_order(parts, start, count):
    """Counting rows one by one gives what a seek gives."""
    mixed = mixture(parts)
    drawn = mixed.drawn_before(start)
    expected = [drawn[task] for task in mixed.tasks]
    for row in range(start, start + count):
        task, number = mixed.at(row)
        assert number == expected[task]
        expected[task] += 1
    assert list(mixed.drawn_before(start + count).values()) == expected


@settings(max_examples=30, deadline=None)
@given(shares, st.integers(0, 3 * CYCLE), st.integers(1, 2000))
def test_any_stretch_holds_its_shares(parts, start, count):
    mixed = mixture(parts)
    seen = Counter(mixed.at(row)[0] for row in range(start, start + count))
    for task, part in enumerate(np.array(parts) / sum(parts)):
        # Each task is at most one row early or late at either end, and its share is rounded to one row in CYCLE.
        assert abs(seen[task] - count * part) <= 2 + count * len(parts) / CYCLE


def test_shares_change_without_disturbing_the_others():
    mixed = mixture([0.5, 0.5])
    before = [mixed.at(row) for row in range(100)]
    mixed.change(100, {"task0": 0.9, "task1": 0.1})
    mixed.change(100, {"task0": 0.8, "task1": 0.2})
    assert [mixed.at(row) for row in range(100)] == before
    after = [mixed.at(row) for row in range(100, 200)]
    assert [number for task, number in after if task == 0] == list(range(50, 130))
    assert [number for task, number in after if task == 1] == list(range(50, 70))
    assert mixed.shares == {"task0": 0.8, "task1": 0.2}
    again = Mixture.from_json(mixed.to_json())
    assert [again.at(row) for row in range(200)] == before + after
    with pytest.raises(ValueError, match="changed at row 100 already"):
        mixed.change(50, mixed.shares)


def test_a_seek_costs_nothing():
    """Row 10^12 is told without counting to it."""
    mixed = mixture([0.7, 0.2, 0.1])
    task, number = mixed.at(10**12)
    assert number == pytest.approx((0.7, 0.2, 0.1)[task] * 10**12, rel=1e-4)
