"""How long a program waits for its exchanges."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathways_lm.plan.program_cost import Exchange, Segment
from pathways_lm.plan.roofline import _waited


def waited(busy, exchanges):
    """Of exchanges as (seconds, start, end)."""
    made = [Exchange("all-gather", (0, 1), ("data",), 1.0, start, end, "") for _, start, end in exchanges]
    return _waited(Segment("", 1.0, [], made), busy, [seconds for seconds, _, _ in exchanges])


@pytest.mark.parametrize(
    ("exchanges", "expected"),
    [
        ([(4.0, 1, 1)], [4.0]),  # awaited where it begins
        ([(2.5, 0, 2)], [0.0]),  # beside 1 + 2 seconds
        ([(4.0, 0, 2)], [1.0]),
        ([(4.0, 1, math.inf)], [0.0]),  # beside 2 + 3
        ([(2.0, 0, 2), (2.0, 0, 2)], [0.0, 1.0]),  # one after the other
        ([(4.0, 0, 1), (2.0, 0, 3)], [3.0, 0.0]),  # while the first is awaited the second does not begin
        ([(5.0, 0, 3), (1.0, 1, 1)], [0.0, 5.0]),  # nor one that is needed at once, before what goes on
    ],
)
def test_by_hand(exchanges, expected):
    assert waited([1.0, 2.0, 3.0], exchanges) == pytest.approx(expected)


SECONDS = st.floats(0, 10)


@given(st.lists(SECONDS, max_size=5), st.lists(st.tuples(SECONDS, st.integers(0, 5), st.integers(0, 5)), max_size=6))
def test_no_more_than_there_is_and_no_less_than_nothing_could_hide(busy, drawn):
    exchanges = [(seconds, min(start, len(busy)), start + beside) for seconds, start, beside in drawn]
    exchanges.sort(key=lambda each: each[1])
    total, told = sum(seconds for seconds, _, _ in exchanges), waited(busy, exchanges)
    assert all(each >= 0 for each in told)
    assert total - sum(busy) - 1e-9 <= sum(told) <= total + 1e-9
