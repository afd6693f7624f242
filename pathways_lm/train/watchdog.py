"""A run that hangs is named and ended, so that it can be started again."""

import faulthandler
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from pathways_lm.train.peers import leave
from pathways_lm.train.pulse import PULSE

Event = Callable[[int, str, str], None]
"""Writes a step, what happened, and a detail into the run's log."""


class Watchdog:
    """Ends the process where neither a step nor a phase was finished for `seconds`; 0 watches nothing.

    What is waited for may be a device, a network or a disk, so that the main thread cannot do it. Time in which the
    whole process was stopped does not count.
    """

    def __init__(self, seconds: float, traces: Path, event: Event, end: Callable[[int, str], NoReturn] = leave):
        """Stack traces go to the file `traces`; `end` is given the exit code and one line."""
        self._seconds, self._traces, self._event, self._end = seconds, traces, event, end
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        tick = min(self._seconds / 20, 1.0)
        beats, still, last = PULSE.beats, 0.0, time.monotonic()
        while not self._over.wait(tick):
            now = time.monotonic()
            # A process that was stopped wakes up late, and has not hung.
            still, last = still + min(now - last, 2 * tick), now
            if PULSE.beats != beats:
                beats, still = PULSE.beats, 0.0
            elif still >= self._seconds:
                self._report(still)
                return

    def _report(self, still: float) -> None:
        step, phase = PULSE.step, PULSE.phase
        told = "the step itself" if phase == "step" else phase
        where = f"stack traces in '{self._traces}'"
        try:
            self._traces.parent.mkdir(parents=True, exist_ok=True)
            # Opened now: a run that does not hang leaves no empty file.
            with self._traces.open("a") as file:
                file.write(f"step {step + 1} hangs in {told}\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
            self._event(step, "hang", f"{told}, {still:.0f} s")
        except OSError as error:
            where = f"no stack traces: '{self._traces}' cannot be written: {error.strerror or error}"
        self._end(
            os.EX_TEMPFAIL,
            f"step {step + 1} hangs: nothing finished for {still:.0f} s (train.watchdog_seconds={self._seconds:g}) in "
            f"{told}; {where}; the same command goes on from the last checkpoint",
        )
