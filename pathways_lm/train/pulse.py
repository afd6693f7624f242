"""What this process is doing now: written by the loop, read by those who watch over it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Pulse:
    """The last finished step and the present phase. `beats` grows whenever either changes."""

    step: int = 0
    phase: str = "start"
    beats: int = 0
    since: float = 0.0
    """When it last changed, in seconds of `time.monotonic`."""

    def beat(self, step: int) -> None:
        """A step is finished."""
        self.step = step
        self._changed("step")

    @contextmanager
    def doing(self, phase: str) -> Iterator[None]:
        """Something else than steps: `compile`, `input`, `checkpoint`, `validation`."""
        before = self.phase
        self._changed(phase)
        try:
            yield
        finally:
            self._changed(before)

    def _changed(self, phase: str) -> None:
        self.phase, self.since = phase, time.monotonic()
        self.beats += 1


PULSE = Pulse()
"""Of this process, which trains one run at a time."""
