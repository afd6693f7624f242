"""Batches in order, read ahead, over changes of shares and what is skipped."""

import threading
from dataclasses import replace

import jax
import numpy as np
import pytest

from pathways_lm.config import DataConfig, MixingConfig
from pathways_lm.data.balance import Balance
from pathways_lm.data.course import Course
from pathways_lm.data.loader import Loader
from pathways_lm.data.ramp import make_ramp
from pathways_lm.models.batch import Batch

LENGTH = 16
SIZES, SEQUENCES = {"big": 75.0, "small": 25.0}, {"big": 30, "small": 10}


def config(**changes) -> DataConfig:
    return DataConfig(sequence_length=LENGTH, batch_size=8, **changes)


def sharding():
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])


class Play:
    """A course with its loader, and what came out of it."""

    def __init__(self, corpus, mixing=None, step=0, facts=None, skips=(), **changes):
        self.balance = Balance(mixing or MixingConfig(), SIZES, SEQUENCES, 1000)
        data = config(**changes)
        self.loader = Loader(corpus, data, lambda rows, _: Batch(rows, rows), self.balance.mixture, make_ramp(data))
        self.course = Course(self.loader, self.balance, sharding(), step)
        if facts is not None:
            self.course.go_back(step, facts, skips)

    def steps(self, count, nll=(1.0, 1.0)) -> list[list[int]]:
        taken = []
        for _ in range(count):
            if self.course.due():
                self.course.change()
            taken.append(np.asarray(self.course.take().tokens)[:, 0].tolist())
            self.course.note(np.array(nll), np.array([1.0, 1.0]))
        return taken


@pytest.fixture
def play(known_corpus):
    plays = []

    def make(*arguments, **changes) -> Play:
        plays.append(Play(known_corpus, *arguments, **changes))
        return plays[-1]

    yield make
    for each in plays:
        each.course.__exit__(None, None, None)


def test_resumed_equals_run_through(play):
    through = play().steps(12)
    for step in (0, 1, 7):
        first = play()
        first.steps(step)
        assert play(step=step, facts=first.course.facts()).steps(12 - step) == through[step:]


def test_shares_change_at_their_step_however_far_is_read_ahead(play):
    """`small` never comes down: its share rises, in each interval of 5 steps and nowhere else."""
    mixing = MixingConfig(rule="loss_ratio", interval=5, rate=3.0, references="big=1,small=1")
    run = play(mixing)
    small = [sum(value >= 2000 for value in rows) for rows in run.steps(5) + run.steps(15, nll=(0.5, 2.0))]
    assert sum(small[:5]) == 10  # a quarter of 40
    assert small[5:10] == [2, 2, 2, 2, 2]
    assert min(small[10:]) >= 7
    segments = run.balance.mixture.segments
    assert [segment.first_row for segment in segments] == [0, 40, 80, 120]


@pytest.mark.parametrize("rule", ["loss_ratio", "excess_loss"])
@pytest.mark.parametrize("step", [3, 5, 9, 10])
def test_resumed_with_shares_that_follow_losses(play, rule, step):
    mixing = MixingConfig(rule=rule, interval=5)
    losses = (1.0, 3.0)
    whole = play(mixing).steps(14, losses)
    first = play(mixing)
    first.steps(step, losses)
    rest = play(mixing, step=step, facts=first.course.facts())
    assert rest.steps(14 - step, losses) == whole[step:]


def test_other_weights_from_a_step_on_leave_each_task_in_order(play):
    first = play()
    before = first.steps(5)
    after = play(MixingConfig(rule="fixed", weights="big=1,small=3"), step=5, facts=first.course.facts()).steps(20)
    assert sum(value >= 2000 for rows in after for value in rows) == 120
    alone = play(MixingConfig(rule="fixed", weights="small=1")).steps(40)
    small = [value for rows in before + after for value in rows if value >= 2000]
    assert small == [value for rows in alone for value in rows][: len(small)]


def test_batches_that_are_skipped(play):
    whole = play().steps(30)
    first = play()
    first.steps(4)
    facts = first.course.facts()
    first.steps(6)
    first.course.go_back(4, facts, ((7, 8 * 5),))
    assert first.steps(10) == whole[4:7] + whole[12:19]


def test_a_ramp_reads_the_same_rows(play):
    rows = [row for batch in play().steps(12) for row in batch]
    ramped = play(batch_ramp="2x3,4x2").steps(10)
    assert [len(batch) for batch in ramped] == [2, 2, 2, 4, 4, 8, 8, 8, 8, 8]
    assert [row for batch in ramped for row in batch] == rows[: 6 + 8 + 40]


def reading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


def test_leaving_ends_the_thread(play):
    with play().course as course:
        course.take()
        assert len(reading_threads()) == 1
    assert not reading_threads()


def test_what_fails_while_reading_is_raised(play, monkeypatch):
    run = play()
    examples = run.loader.examples

    def failing(numbers: range) -> Batch:
        if numbers.start >= 24:
            raise OSError("the disk is gone")
        return examples(numbers)

    monkeypatch.setattr(run.loader, "examples", failing)
    run.steps(3)
    with pytest.raises(OSError, match="the disk is gone"):
        run.steps(1)


def test_a_skip_may_be_far_away(play):
    run = play()
    run.loader.ramp = replace(run.loader.ramp, skips=((3, 80), (10**6, 8)))
    assert run.loader.ramp.first_row(2) == 16
    assert run.loader.ramp.first_row(3) == 24 + 80
    assert run.loader.ramp.first_row(10**6) == 8 * 10**6 + 88
