"""What the loop logs, when, and when it waits for the device; with a step that is arithmetic on the host."""

import errno
import itertools
import os
import signal
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

from pathways_lm.config import TrainConfig
from pathways_lm.errors import CheckpointError
from pathways_lm.train import loop, meter
from pathways_lm.train.guard import Guard
from pathways_lm.train.loop import Hooks
from pathways_lm.train.meter import Workload
from pathways_lm.train.state import TrainState

STEP_SECONDS, VALIDATION_SECONDS, SAVE_SECONDS = 0.5, 100.0, 1000.0


@dataclass
class Stage:
    """Plays everything the loop talks to, and writes down what happens in which order."""

    now: float = 0.0
    happened: list[tuple] = field(default_factory=list)
    folder: Any = None

    # The step: its figures are those of its number.
    def step(self, state: TrainState, batch: int) -> tuple[TrainState, dict[str, np.ndarray]]:
        number = int(state.step) + 1
        assert batch == number - 1
        self.now += STEP_SECONDS
        self.happened.append(("step", number))
        names = ("loss", "z_loss", "grad_norm", "param_norm", "learning_rate", "batch_tokens")
        metrics = {name: np.float32(number * (place + 1)) for place, name in enumerate(names)}
        return state._replace(step=np.int32(number)), metrics

    # The log.
    def train(self, step, figures):
        self.happened.append(("train", step, figures))

    def validation(self, step, figures, yardsticks):
        self.happened.append(("validation", step, figures))

    def sample(self, step, prompt, text):
        self.happened.append(("sample", step))

    def event(self, step, what, detail=""):
        self.happened.append((what, step))

    # The store.
    def save(self, step, items, facts, figures=None):
        self.now += SAVE_SECONDS
        self.happened.append(("save", step))

    def wait(self):
        self.happened.append(("wait",))

    def validate(self, params):
        self.now += VALIDATION_SECONDS
        return {"loss": 1.0, "bits_per_byte": 2.0}

    def called(self, *kinds: str) -> list[tuple]:
        return [entry[:2] for entry in self.happened if entry[0] in kinds]

    def figures(self) -> dict[int, dict[str, float]]:
        return {entry[1]: entry[2] for entry in self.happened if entry[0] == "train"}


@pytest.fixture
def stage(monkeypatch) -> Stage:
    stage = Stage()
    device_get = jax.device_get

    def counted(tree):
        stage.happened.append(("read",))
        return device_get(tree)

    monkeypatch.setattr(jax, "device_get", counted)
    for module in (loop, meter):
        monkeypatch.setattr(module.time, "perf_counter", lambda: stage.now)
    monkeypatch.setattr(jax, "block_until_ready", lambda tree: pytest.fail("waited"))
    return stage


@pytest.fixture
def play(make_loop):
    return partial(played, make_loop)


def played(make_loop, stage: Stage, start: int = 0, step=None, **config):
    state = TrainState(np.int32(start), {}, {}, np.zeros(2, np.uint32), Guard(np.int32(0), np.float32(1), np.int32(0)))
    hooks = Hooks(stage.validate, lambda params, rng, step: [("", "")], {})
    workload = Workload(tokens_per_row=100, flops_per_token=6.0, peak_flops=2400.0)
    batches = itertools.count(start)
    loop = make_loop(TrainConfig(**config), state, step or stage.step, batches, stage, stage, workload, hooks)
    return loop.run()


EVERY = {"num_steps": 50, "log_every": 10, "eval_every": 20, "checkpoint_every": 25}


def test_when_things_happen(stage, play):
    state, stopped = play(stage, **EVERY)
    assert (int(state.step), stopped) == (50, None)
    assert stage.called("validation") == [("validation", step) for step in (0, 20, 40, 50)]
    assert stage.called("sample") == [("sample", step) for step in (0, 20, 40, 50)]
    assert stage.called("save") == [("save", 25), ("save", 50)]
    # Validation and checkpoints end a row early, else it would count their time.
    assert list(stage.figures()) == [10, 20, 25, 30, 40, 50]
    order = [entry[0] for entry in stage.happened]
    assert order.index("wait") > max(i for i, kind in enumerate(order) if kind == "save")


def test_a_run_that_is_taken_up_validates_when_it_is_due(stage, play):
    play(stage, start=25, **EVERY)
    assert stage.called("validation") == [("validation", step) for step in (40, 50)]
    assert stage.called("save") == [("save", 50)]
    assert list(stage.figures()) == [30, 40, 50]


@pytest.mark.parametrize("log_every", [1, 3, 7, 60])
def test_every_step_is_in_one_row(stage, play, log_every):
    play(stage, **{**EVERY, "log_every": log_every})
    last = 0
    for step, figures in stage.figures().items():
        assert step > last
        # The mean of the steps since the last row; of what is not averaged, the last value.
        assert figures["loss"] == pytest.approx((last + 1 + step) / 2)
        assert figures["grad_norm"] == pytest.approx(3 * (last + 1 + step) / 2)
        assert figures["learning_rate"] == 5 * step
        assert figures["tokens"] == 100 * step
        assert "batch_tokens" not in figures
        last = step
    assert last == 50


def test_rates_leave_out_validation_and_checkpoints(stage, play):
    """A row that is read one step late counts that step as well: on a device it runs beside the reading."""
    play(stage, **{**EVERY, "log_every": 1000})
    rows = stage.figures()
    assert list(rows) == [20, 25, 40, 50]
    for figures in rows.values():
        assert figures["step_seconds"] == pytest.approx(STEP_SECONDS)
        assert figures["tokens_per_second"] == pytest.approx(100 / STEP_SECONDS)
        assert figures["mfu"] == pytest.approx(100 / STEP_SECONDS * 6 / 2400)


def test_rows_one_step_late_add_up_to_the_time_of_all_steps(stage, play):
    play(stage, **EVERY)
    last, seconds = 0, 0.0
    for step, figures in stage.figures().items():
        seconds += figures["step_seconds"] * (step - last)
        last = step
    assert seconds == pytest.approx(50 * STEP_SECONDS)


def test_the_device_is_read_for_rows_alone_and_has_a_step_to_do_meanwhile(stage, play):
    play(stage, **{**EVERY, "eval_every": 1000, "checkpoint_every": 1000})
    order = [entry[:2] for entry in stage.happened if entry[0] in ("step", "read")]
    reads = [place for place, entry in enumerate(order) if entry[0] == "read"]
    # Each a step after its row's; nothing follows the last.
    assert [order[place - 1] for place in reads] == [("step", step) for step in (11, 21, 31, 41, 50)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("at", [1, 25, 33])
def test_stopping(stage, play, number, at):
    """The step in which the signal comes is finished, saved once, and logged."""

    def step(state, batch):
        if int(state.step) == at - 1:
            os.kill(os.getpid(), number)
        return stage.step(state, batch)

    state, stopped = play(stage, step=step, **EVERY)
    assert (int(state.step), stopped) == (at, number)
    assert stage.called("save")[-1] == ("save", at)
    assert len(stage.called("save")) == 1 + (at > 25)
    assert list(stage.figures())[-1] == at
    assert [entry[0] for entry in stage.happened[-3:]] == ["checkpoint", "wait", "stop"]


def test_a_signal_in_the_last_step_changes_nothing(stage, play):
    def step(state, batch):
        if int(state.step) == 49:
            os.kill(os.getpid(), signal.SIGTERM)
        return stage.step(state, batch)

    state, stopped = play(stage, step=step, **EVERY)
    assert (int(state.step), stopped) == (50, None)


def test_full_disk(stage, play, tmp_path, monkeypatch):
    stage.folder = tmp_path / "run" / "checkpoints"

    def full(step, figures):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(stage, "train", full)
    with pytest.raises(CheckpointError, match=f"'{tmp_path / 'run'}' cannot be written: No space left on device"):
        play(stage, **EVERY)
