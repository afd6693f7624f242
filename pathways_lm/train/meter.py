"""Figures of steps, from the device to the log."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import numpy as np

from pathways_lm.errors import TrainingError
from pathways_lm.train.step import Metrics

# The means of these over the finite steps since the last row are logged; of the others, the last value.
AVERAGED = ("loss", "z_loss", "grad_norm")
_UNTOLD = ("batch_tokens", "tasks")

Figures = dict[str, Any]
"""Numbers by name; what is told of every layer is a list, of every task a dictionary."""


class Writer(Protocol):
    """What training needs of a log."""

    def train(self, step: int, figures: Figures) -> None: ...
    def validation(self, step: int, figures: Figures, yardsticks: dict[str, float]) -> None: ...
    def event(self, step: int, what: str, detail: str = "") -> None: ...
    def sample(self, step: int, prompt: str, text: str) -> None: ...


@dataclass(frozen=True)
class Workload:
    """What training works on, to turn seconds into rates."""

    tokens_per_row: int
    flops_per_token: float
    peak_flops: float | None
    """Of all devices together; None where it is not known."""
    watts: float | None = None
    """Of all devices together; None where it is not known."""
    tasks: tuple[str, ...] = ()


@dataclass
class Meter:
    """Turns device figures into log rows, one interval late, so that the device never waits for the log.

    Raises TrainingError after `skips_allowed` updates in a row that were not finite.
    """

    workload: Workload
    log: Writer
    rows_read: Callable[[int], int]
    """Sequences that so many steps read."""
    skips_allowed: int
    _kept: list[tuple[int, Metrics]] = field(default_factory=list)
    _since: float = field(default_factory=lambda: time.perf_counter())
    _excluded: float = 0.0
    _skipped: int = 0

    def keep(self, step: int, metrics: Metrics) -> None:
        """Remembers a step's figures, still on the device."""
        self._kept.append((step, metrics))

    def write(self, more: Callable[[], Figures]) -> list[tuple[int, Figures]]:
        """Waits for the steps kept, logs them as one row, and returns each step's figures.

        Args:
          more: what else the row tells.
        """
        if not self._kept:
            return []
        rows: list[Figures] = jax.device_get([metrics for _, metrics in self._kept])
        now = time.perf_counter()
        steps = [step for step, _ in self._kept]
        seconds = max(now - self._since - self._excluded, 1e-9)
        self._kept, self._since, self._excluded = [], now, 0.0
        self.log.train(steps[-1], self._figures(steps, rows, seconds) | more())
        self._look(steps, rows)
        return list(zip(steps, rows, strict=True))

    def forget(self) -> None:
        """Drops what is kept."""
        self._kept = []

    def exclude(self, seconds: float) -> None:
        """Time spent on other things than steps."""
        self._excluded += seconds

    def _figures(self, steps: list[int], rows: list[Figures], seconds: float) -> Figures:
        work = self.workload
        figures = {name: _plain(value) for name, value in rows[-1].items() if name not in _UNTOLD}
        finite = [row for row in rows if math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"])]
        for name in AVERAGED:
            values = [float(row[name]) for row in finite]
            figures[name] = sum(values) / len(values) if values else None
        read = self.rows_read(steps[-1])
        tokens = read * work.tokens_per_row
        rate = (read - self.rows_read(steps[0] - 1)) * work.tokens_per_row / seconds
        figures |= {
            "tokens": tokens,
            "flops": tokens * work.flops_per_token,
            "tokens_per_second": rate,
            "step_seconds": seconds / len(steps),
        }
        if work.peak_flops:
            figures["mfu"] = rate * work.flops_per_token / work.peak_flops
        if work.tasks:
            nll_T, tokens_T = (
                np.sum([np.asarray(row["tasks"], np.float64) for row in finite], axis=0)
                if finite
                else (np.zeros((2, len(work.tasks))))
            )
            figures["tasks"] = {
                task: {"loss": float(nll / count) if count else None, "tokens": float(count)}
                for task, nll, count in zip(work.tasks, nll_T, tokens_T, strict=True)
            }
        return figures

    def _look(self, steps: list[int], rows: list[Figures]) -> None:
        for step, row in zip(steps, rows, strict=True):
            if math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"]):
                self._skipped = 0
                continue
            self._skipped += 1
            figures = f"loss {float(row['loss'])}, gradient norm {float(row['grad_norm'])}"
            self.log.event(step, "skipped", f"the update is not finite: {figures}")
            if self._skipped == self.skips_allowed:
                raise TrainingError(
                    f"the last {self._skipped} updates, up to step {step}, were not finite ({figures}) and were "
                    "skipped; lower optimizer.learning_rate, or look at the batches (train.skips_allowed)"
                )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    plain = np.asarray(value).tolist()
    return plain if isinstance(plain, list) or math.isfinite(plain) else None
