"""Spikes: found, gone back from, and the batches around them skipped."""

from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pathways_lm.config import TrainConfig
from pathways_lm.data.ramp import Ramp, Stretch
from pathways_lm.errors import TrainingError
from pathways_lm.train.guard import Guard
from pathways_lm.train.loop import Hooks
from pathways_lm.train.meter import Workload
from pathways_lm.train.spikes import Rewind, Rewinds, Spikes, deviations
from pathways_lm.train.state import TrainState, from_items

CONFIG = TrainConfig(
    num_steps=400, log_every=5, eval_every=1000, checkpoint_every=50, checkpoints_kept=5,
    spike_threshold=8.0, spike_window=40, spike_rewind=60, spike_skip=80, spikes_allowed=2,
)  # fmt: skip


@given(st.lists(st.floats(-100, 100), min_size=3, max_size=30), st.floats(-1000, 1000))
def test_deviations(others, value):
    spread = stats.median_abs_deviation(others, scale="normal")
    if spread > 1e-2 * abs(np.median(others)) + 1e-9:
        assert deviations(value, others) == pytest.approx((value - np.median(others)) / spread, rel=1e-3, abs=1e-9)


def falling(steps, seed=0):
    rng = np.random.default_rng(seed)
    losses = 3 + 5 / np.sqrt(1 + np.arange(steps)) + 0.05 * rng.standard_normal(steps)
    return losses, 1 + 0.1 * rng.standard_normal(steps)


@pytest.mark.parametrize("seed", range(5))
def test_a_falling_loss_has_no_spikes(seed):
    spikes = Spikes(CONFIG)
    assert not any(spikes.found(*pair) for pair in zip(*falling(2000, seed), strict=True))


def test_loss_and_gradient_together_are_a_spike():
    losses, norms = falling(200)
    losses[150], norms[150] = losses[150] + 2, 10
    spikes = Spikes(CONFIG)
    assert [spikes.found(*pair) for pair in zip(losses, norms, strict=True)].index(True) == 150


def test_one_loud_step_is_none_but_several_are():
    losses, norms = falling(200)
    losses[100] += 2
    losses[150:170] += 2
    spikes = Spikes(CONFIG)
    assert [spikes.found(*pair) for pair in zip(losses, norms, strict=True)].index(
        True
    ) == 150 + CONFIG.spike_patience - 1


def test_off():
    spikes = Spikes(TrainConfig(num_steps=1))
    assert not any(spikes.found(loss, 1.0) for loss in [1.0] * 200 + [1e9] * 50)


def test_what_it_has_seen_comes_back():
    pairs = list(zip(*falling(120), strict=True))
    whole, first, second = Spikes(CONFIG), Spikes(CONFIG), Spikes(CONFIG)
    for pair in pairs:
        whole.found(*pair)
    for pair in pairs[:70]:
        first.found(*pair)
    second.restore(first.to_json())
    for pair in pairs[70:]:
        second.found(*pair)
    assert second.to_json() == whole.to_json()


class World:
    """A run whose state is the list of batches it has learned from, and whose loss is high from a bad batch on."""

    def __init__(self, poison):
        self.poison, self.saved, self.events, self.skips = poison, {}, [], ()
        self.at = 0
        self.ramp = Ramp((Stretch(0, 0, 1),))
        self.folder = None

    # the step

    def step(self, state, batch):
        learned = (*state.params["learned"], batch)
        rng = np.random.default_rng(len(learned))
        bad = any(each in self.poison for each in learned[-30:])
        loss = 3 + 0.01 * rng.standard_normal() + 5 * bad
        metrics = {"loss": np.float32(loss), "z_loss": np.float32(0), "grad_norm": np.float32(1 + 9 * bad)}
        return state._replace(step=np.int32(state.step + 1), params={"learned": learned}), metrics

    # the course

    shares: Any = None

    def take(self):
        self.at += 1
        return self.ramp.first_row(self.at - 1)

    def due(self):
        return False

    def rows_read(self, step):
        return step

    def batch_size(self, step):
        return 1

    def facts(self):
        return {"skips": self.ramp.skips}

    def go_back(self, step, facts, skips):
        self.at, self.ramp = step, Ramp(self.ramp.stretches, skips)

    # the store

    def save(self, step, items, facts, figures):
        self.saved[step] = (items, facts)
        for old in sorted(self.saved)[:-5]:
            del self.saved[old]

    def steps(self):
        return sorted(self.saved)

    def wait(self):
        return None

    def restore(self, step):
        self.saved = {each: kept for each, kept in self.saved.items() if each <= step}
        items, facts = self.saved[step]
        return from_items(items), facts

    # the log

    def train(self, step, figures):
        return None

    def validation(self, step, figures, yardsticks):
        return None

    def event(self, step, what, detail=""):
        self.events.append((step, what, detail))


@pytest.fixture
def run(make_loop):
    def go(poison, config=CONFIG):
        world = World(poison)
        state = TrainState(
            np.int32(0), {"learned": ()}, {}, np.zeros(2), Guard(np.int32(0), np.float32(1), np.int32(0))
        )
        hooks = Hooks(lambda params: {"loss": 0.0}, None, {})
        parts = {"course": world, "restore": partial(World.restore, world)}
        loop = make_loop(config, state, world.step, None, world, world, Workload(1, 1.0, None), hooks, **parts)
        return world, loop

    return go


def test_back_over_the_spike(run):
    """Found at step 201, so that batches 140 to 219 are skipped; the checkpoint before is of step 100."""
    world, loop = run({200})
    state, _ = loop.run()
    learned = list(state.params["learned"])
    assert learned == [*range(140), *range(220, 480)]
    assert [(step, what) for step, what, _ in world.events if what == "rewind"] == [(100, "rewind")]
    assert loop.rewinds.done == [Rewind(spike=201, restored=100, at=140, rows=80)]
    assert Rewinds(loop.rewinds._path).done == loop.rewinds.done


def test_without_spikes_nothing_is_skipped(run):
    state, _ = run(set())[1].run()
    assert list(state.params["learned"]) == list(range(400))


def test_two_spikes(run):
    """The second is met later; what was skipped before stays so."""
    state, _ = run({200, 300})[1].run()
    learned = list(state.params["learned"])
    assert not {200, 300} & set(learned)
    assert learned == sorted(set(learned)) and len(learned) == 400


def test_a_spike_that_does_not_end(run):
    """Every batch from 200 on is bad: after two rewinds the run gives up."""
    _, loop = run(set(range(200, 1000)))
    with pytest.raises(TrainingError, match=r"spike 3 of the loss .*train\.spikes_allowed=2: lower"):
        loop.run()


def test_updates_that_stay_not_finite(run):
    world, loop = run(set(), TrainConfig(num_steps=50, log_every=5, skips_allowed=7))
    plain = world.step

    def step(state, batch):
        state, metrics = plain(state, batch)
        return state, metrics | ({"loss": np.float32(np.nan)} if batch >= 20 else {})

    loop.step_for = lambda rows: step
    with pytest.raises(TrainingError, match=r"the last 7 updates, up to step 27, were not finite \(loss nan"):
        loop.run()
    assert [at for at, what, _ in world.events if what == "skipped"] == list(range(21, 28))


def test_no_checkpoint_to_go_back_to(run):
    """As after a run that was begun without looking for spikes."""
    world, loop = run({200})
    world.steps = lambda: [150, 200]
    with pytest.raises(TrainingError, match=r"step 201 is a spike .* no checkpoint up to step 140 is left"):
        loop.run()


def test_a_damaged_checkpoint_is_passed_over(run):
    """What is restored tells where training goes on, not what was asked for."""
    world, loop = run({200})
    loop.restore = lambda step: world.restore(50)
    state, _ = loop.run()
    assert list(state.params["learned"]) == [*range(140), *range(220, 480)]
