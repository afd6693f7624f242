"""Spikes of the loss, and what becomes of the batches around them.

PaLM (arXiv:2204.02311, section 5.1): training goes back to a checkpoint roughly 100 steps before the spike and skips
roughly 200 to 500 batches, those seen before and during it. The same batches from another state raise no spike.
"""

import json
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from pathways_lm.checkpoint.run_folder import write_atomically
from pathways_lm.config import TrainConfig
from pathways_lm.errors import CheckpointError

# The standard deviation of normal numbers over their median absolute deviation.
_DEVIATION = 1.4826
# Figures that hardly move would make a spike of any noise.
_LEAST = 1e-3


class Spikes:
    """Looks for spikes among steps that come one after the other."""

    def __init__(self, config: TrainConfig):
        self._config = config
        self._seen: deque[tuple[float, float]] = deque(maxlen=config.spike_window)
        self._high = 0

    def found(self, loss: float, grad_norm: float) -> bool:
        """Whether a step with these figures ends a spike's beginning. Steps that stand out are not compared with."""
        config = self._config
        if not config.spike_threshold or not math.isfinite(loss):
            return False
        losses, norms = zip(*self._seen, strict=True) if self._seen else ((), ())
        if 2 * len(losses) < config.spike_window:
            self._seen.append((loss, grad_norm))
            return False
        high = deviations(loss, losses) > config.spike_threshold
        self._high = self._high + 1 if high else 0
        if high and deviations(grad_norm, norms) > config.spike_threshold:
            return True
        if not high:
            self._seen.append((loss, grad_norm))
        return self._high >= config.spike_patience

    def to_json(self) -> list:
        """Plain values, for a checkpoint."""
        return [self._high, [list(pair) for pair in self._seen]]

    def restore(self, values: Sequence) -> None:
        """Goes on as a checkpoint says."""
        self._high = values[0]
        self._seen = deque((tuple(pair) for pair in values[1]), maxlen=self._config.spike_window)


def deviations(value: float, others: Sequence[float]) -> float:
    """How many robust standard deviations a value lies above the median of others."""
    median = float(np.median(others))
    spread = _DEVIATION * float(np.median(np.abs(np.asarray(others) - median)))
    return (value - median) / max(spread, _LEAST * abs(median), 1e-12)


@dataclass(frozen=True)
class Rewind:
    """What was done about a spike."""

    spike: int
    """The step at which it was found."""
    restored: int
    """The step of the checkpoint that was gone back to."""
    at: int
    """Steps done in front of what is skipped."""
    rows: int
    """Rows of the training stream skipped."""


class Rewinds:
    """All that a run went back, kept in a file of the run folder."""

    def __init__(self, path: Path):
        self._path = path
        self.done: list[Rewind] = []
        if path.exists():
            try:
                self.done = [Rewind(**values) for values in json.loads(path.read_text())]
            except (ValueError, TypeError) as error:
                raise CheckpointError(f"'{path}' cannot be read: {error}") from None

    def add(self, rewind: Rewind, write: bool) -> None:
        """Notes one. Written before anything is restored: a kill must not bring the skipped batches back."""
        self.done.append(rewind)
        if write:
            write_atomically(self._path, json.dumps([asdict(each) for each in self.done], indent=1) + "\n")

    @property
    def skips(self) -> tuple[tuple[int, int], ...]:
        """(step, rows) of all that is skipped."""
        return tuple((each.at, each.rows) for each in self.done)
