"""Where a run's time went, over all processes that worked on it."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pathways_lm.train.pulse import PULSE

KINDS = ("step", "input", "compile", "validation", "checkpoint", "start", "lost", "down")
"""Steps that count; waiting for a batch; compiling; validation; writing checkpoints; all before the first step; steps
whose results were lost, by a kill or a rewind; between a process and the one that went on."""


class Books:
    """Seconds of each kind. What belongs to no other is `step`'s.

    Args:
      since: when the process began to work, by `time.perf_counter`.
    """

    def __init__(self, since: float):
        self.seconds = dict.fromkeys(KINDS, 0.0)
        self._since, self._kind = since, "start"

    @contextmanager
    def spent(self, kind: str) -> Iterator[None]:
        """The block's time is of this kind; those who watch over the process are told."""
        outer = self.turn(kind)
        try:
            with PULSE.doing(kind):
                yield
        finally:
            self.turn(outer)

    def turn(self, kind: str) -> str:
        """From now on time is of this kind; returns what it was of."""
        now = time.perf_counter()
        self.seconds[self._kind] += now - self._since
        before, self._since, self._kind = self._kind, now, kind
        return before

    def lose(self, productive: float) -> None:
        """Of the time in steps, only so many seconds count: what came later is lost."""
        self.turn(self._kind)
        lost = max(self.seconds["step"] - productive, 0.0)
        self.seconds["step"] -= lost
        self.seconds["lost"] += lost

    def follow(self, last: Mapping[str, float], wrote: float, productive: float) -> None:
        """Goes on with the books of the process before.

        Args:
          last: its seconds, as they stood when it last wrote them, at `wrote` by the clock.
          productive: its seconds in steps up to the checkpoint from which this process goes on.
        """
        own = self.seconds
        self.seconds = {kind: last.get(kind, 0.0) + own[kind] for kind in KINDS}
        self.seconds["down"] += max(time.time() - wrote - sum(own.values()), 0.0)
        self.lose(productive)

    @property
    def goodput(self) -> float:
        """The share of all time that went into steps that count."""
        return self.seconds["step"] / max(sum(self.seconds.values()), 1e-9)

    def rows(self) -> dict[str, float]:
        """Figures for the log."""
        self.turn(self._kind)
        return {"goodput": self.goodput, **{f"seconds_{kind}": spent for kind, spent in self.seconds.items()}}


def last_books(metrics: Path) -> tuple[dict[str, float], float] | None:
    """The seconds that a process before wrote last, and when; None where none did."""
    found = None
    if metrics.exists():
        with metrics.open("rb") as lines:
            for line in lines:
                if b'"seconds_step"' in line and line.endswith(b"}\n"):
                    found = json.loads(line)
    if found is None:
        return None
    return {kind: float(found.get(f"seconds_{kind}", 0.0)) for kind in KINDS}, float(found["time"])
