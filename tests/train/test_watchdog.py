"""A loop that stands still is named and ended."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from pathways_lm.train.pulse import PULSE, Pulse
from pathways_lm.train.watchdog import Watchdog


class Ended:
    """Takes what the watchdog says instead of ending the test."""

    def __init__(self):
        self.happened = threading.Event()
        self.events = []

    def event(self, step, what, detail):
        self.events.append((step, what, detail))

    def end(self, code, why):
        self.code, self.why = code, why
        self.happened.set()


@pytest.mark.parametrize("phase", ["step", "checkpoint"])
def test_a_hang(tmp_path, phase):
    ended, traces = Ended(), tmp_path / "traces.txt"

    def a_step_that_sleeps():
        if phase == "step":
            assert ended.happened.wait(30)
        else:
            with PULSE.doing(phase):
                assert ended.happened.wait(30)

    with Watchdog(0.4, traces, ended.event, ended.end):
        PULSE.beat(6)
        began = time.monotonic()
        a_step_that_sleeps()
        assert 0.4 <= time.monotonic() - began < 10
    assert ended.code == 75
    assert "step 7 hangs" in ended.why
    assert "\n" not in ended.why
    assert f"in {'the step itself' if phase == 'step' else phase};" in ended.why
    assert str(traces) in ended.why
    # Of the thread that hangs, and where.
    assert "in a_step_that_sleeps" in traces.read_text()
    [(step, what, detail)] = ended.events
    assert (step, what) == (6, "hang")
    assert detail


def test_steps_that_take_their_time_are_left_alone(tmp_path):
    ended = Ended()
    with Watchdog(1.0, tmp_path / "traces.txt", ended.event, ended.end):
        for step in range(8):
            time.sleep(0.25)
            PULSE.beat(step)
    assert not ended.happened.is_set()
    assert list(tmp_path.iterdir()) == []


def test_off(tmp_path):
    before = threading.active_count()
    with Watchdog(0, tmp_path / "traces.txt", Ended().event, Ended().end):
        assert threading.active_count() == before


def test_traces_that_cannot_be_written(tmp_path):
    ended = Ended()
    (tmp_path / "file").write_text("")
    with Watchdog(0.1, tmp_path / "file" / "traces.txt", ended.event, ended.end):
        assert ended.happened.wait(30)
    assert "cannot be written" in ended.why
    assert ended.code == 75


SLEEPER = """
import sys, time
from pathlib import Path
from pathways_lm.train.pulse import PULSE
from pathways_lm.train.watchdog import Watchdog

with Watchdog(2, Path(sys.argv[1]), lambda *event: print(*event, flush=True)):
    PULSE.beat(3)
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_process_that_was_stopped_did_not_hang(tmp_path):
    """Time in which it could not run doesn't count; later it hangs, and is ended without Python's goodbyes."""
    command = [sys.executable, "-c", SLEEPER, str(tmp_path / "traces.txt")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(3)
        process.send_signal(signal.SIGCONT)
        time.sleep(0.5)
        assert process.poll() is None
        out, err = process.communicate(timeout=60)
    assert process.returncode == os.EX_TEMPFAIL
    assert out.startswith("3 hang the step itself")
    assert err.startswith("pathways-lm: step 4 hangs: ")
    assert len(err.splitlines()) == 1


def test_phases_nest():
    pulse = Pulse()
    pulse.beat(1)
    with pulse.doing("validation"):
        with pulse.doing("compile"):
            assert pulse.phase == "compile"
        assert pulse.phase == "validation"
    assert (pulse.phase, pulse.step) == ("step", 1)
    assert pulse.beats == 5
