"""Schedules against a simulation of stages that work on what they have."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from pathways_lm.pipeline.timetable import Timetable, slots

PIPELINES = ("gpipe", "1f1b")
tables = st.builds(
    lambda pipeline, stages, chunks, groups, rest, towers: Timetable(
        pipeline, stages, chunks, groups * stages + (rest if chunks == 1 else 0), towers
    ),
    st.sampled_from(PIPELINES),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(0, 3),
    st.integers(1, 2),
)


def events(table):
    """(tick, order within it, stage, tower, way, microbatch, chunk) of everything that the legs do."""
    S = table.stages
    for tower in range(table.towers):
        for index in range(table.items):
            for stage in range(S):
                m, c = table.item(index)
                yield table.forward(tower) + stage + index, tower, stage, tower, "forward", m, c
                m, c = table.returning(index)
                yield table.backward(tower) + S - 1 - stage + index, 9 - tower, stage, tower, "backward", m, c


@given(tables)
def test_everything_once_and_in_order(table):
    done, busy = {}, set()
    for tick, order, stage, tower, way, m, c in sorted(events(table)):
        # A stage does one thing of each leg at a tick.
        assert (tick, stage, tower, way) not in busy
        busy.add((tick, stage, tower, way))
        done[stage, tower, way, m, c] = (tick, order)
    S, v, M = table.stages, table.chunks, table.microbatches
    assert len(done) == 2 * S * v * M * table.towers
    for m in range(M):
        # The way of a microbatch: up through the chunks and stages of each tower, and back.
        steps = [(s, tower, c) for tower in range(table.towers) for c in range(v) for s in range(S)]
        way = [done[s, tower, "forward", m, c] for s, tower, c in steps]
        way += [done[s, tower, "backward", m, c] for s, tower, c in reversed(steps)]
        steps += steps[::-1]
        for (before, _), (after, _), here, there in zip(way, way[1:], steps, steps[1:], strict=False):
            # To a neighbour or another chunk by the next tick; from one tower to the next, or round, also within one.
            moved = here != there and here[1] == there[1]
            assert before < after if moved else before <= after
        assert way == sorted(way)


@given(tables)
def test_inputs_wait_in_their_slots(table):
    for tower in range(table.towers):
        places = table.input_slots(tower)
        for stage in range(table.stages):
            held = {}
            for tick, _, _, _, way, m, c in sorted(e for e in events(table) if e[2] == stage and e[3] == tower):
                place = table.index(m, c) % places
                if way == "forward":
                    assert place not in held, tick
                    held[place] = (m, c)
                else:
                    assert held.pop(place) == (m, c)


@given(tables)
def test_segments_cover_every_tick(table):
    covered = [tick for segment in table.segments() for tick in range(segment.first, segment.end)]
    assert covered == list(range(table.ticks))
    active = {(tick, tower, way) for tick, _, _, tower, way, _, _ in events(table)}
    told = set()
    for segment in table.segments():
        for tick in range(segment.first, segment.end):
            told |= {(tick, tower, "forward") for tower in segment.forward}
            told |= {(tick, tower, "backward") for tower in segment.backward}
    assert told == active


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize(("p", "v", "m"), [(4, 1, 4), (4, 1, 32), (4, 2, 8), (4, 3, 12), (35, 1, 240)])
def test_bubble(pipeline, p, v, m):
    """(p - 1) / (v m) of the time at work (Megatron-LM, arXiv:2104.04473, section 2.2), measured in ticks.

    A tick takes as long as what its segment does: the forward work of one chunk, its backward work, or both.
    """
    table = Timetable(pipeline, p, v, m)
    forward, backward = 1.0, 3.0
    took = sum(
        (segment.end - segment.first) * (forward * len(segment.forward) + backward * len(segment.backward))
        for segment in table.segments()
    )
    work = v * m * (forward + backward)
    assert took / work - 1 == pytest.approx((p - 1) / (v * m))
    assert table.bubble == pytest.approx((p - 1) / (v * m))


def test_inputs_in_flight():
    """1F1B's do not grow with the microbatches: at most 2 p - 1 stage inputs; GPipe's are all of them."""
    for m in (8, 16, 32, 240):
        assert Timetable("1f1b", 4, 1, m).input_slots(0) == 7
        assert Timetable("gpipe", 4, 1, m).input_slots(0) == m


def test_slots():
    assert slots([0, 1, 2], [0, 1, 2]) == 1
    assert slots([0, 1, 2], [1, 2, 3]) == 2
    assert slots([0, 1, 2], [9, 9, 9]) == 3
