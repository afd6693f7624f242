"""The loop: batches in, figures and checkpoints out."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import numpy as np
from jax import Array

from pathways_lm.checkpoint.store import Store
from pathways_lm.config import TrainConfig
from pathways_lm.errors import CheckpointError
from pathways_lm.models.batch import Batch
from pathways_lm.models.model import Params
from pathways_lm.train.pulse import PULSE
from pathways_lm.train.state import TrainState, to_items
from pathways_lm.train.step import Metrics, Step
from pathways_lm.train.stop import StopRequest

# The means of these over the steps since the last row are logged; of the others, the last value.
AVERAGED = ("loss", "z_loss", "grad_norm")

Figures = dict[str, Any]
"""Numbers by name; what is told of every layer is a list."""
Sample = Callable[[Params, Array, int], tuple[str, str]]
"""A prompt and the model's continuation, from the parameters, the run's key and the step."""


class Writer(Protocol):
    """What the loop needs of a log."""

    def train(self, step: int, figures: Figures) -> None: ...
    def validation(self, step: int, figures: dict[str, float], yardsticks: dict[str, float]) -> None: ...
    def event(self, step: int, what: str, detail: str = "") -> None: ...
    def sample(self, step: int, prompt: str, text: str) -> None: ...


@dataclass(frozen=True)
class Hooks:
    """What is done with the parameters at every validation."""

    validate: Callable[[Params], dict[str, float]]
    """Figures of the validation text: `loss` and, where all of it is scored, `bits_per_byte`."""
    sample: Sample | None
    """None for a model that does not continue text."""
    yardsticks: dict[str, float]
    """Bits per byte of general compressors on the same text."""


@dataclass(frozen=True)
class Workload:
    """What one step works on, to turn seconds into rates."""

    tokens_per_step: int
    flops_per_token: float
    peak_flops: float | None
    """Of all devices together; None where it is not known."""


@dataclass
class Meter:
    """Turns device figures into log rows, one interval late, so that the device never waits for the log."""

    workload: Workload
    log: Writer
    _kept: list[tuple[int, Metrics]] = field(default_factory=list)
    _since: float = field(default_factory=lambda: time.perf_counter())
    _excluded: float = 0.0

    def keep(self, step: int, metrics: Metrics) -> None:
        """Remembers a step's figures, still on the device."""
        self._kept.append((step, metrics))

    def write(self) -> None:
        """Waits for the steps kept and logs them as one row."""
        if not self._kept:
            return
        rows: list[Figures] = jax.device_get([metrics for _, metrics in self._kept])
        now = time.perf_counter()
        step, count = self._kept[-1][0], len(rows)
        seconds = max(now - self._since - self._excluded, 1e-9)
        self._kept, self._since, self._excluded = [], now, 0.0
        figures: Figures = {
            name: np.asarray(value).tolist() for name, value in rows[-1].items() if name != "batch_tokens"
        }
        figures |= {name: sum(float(row[name]) for row in rows) / count for name in AVERAGED}
        rate = count * self.workload.tokens_per_step / seconds
        figures |= {
            "tokens": step * self.workload.tokens_per_step,
            "tokens_per_second": rate,
            "step_seconds": seconds / count,
        }
        if self.workload.peak_flops:
            figures["mfu"] = rate * self.workload.flops_per_token / self.workload.peak_flops
        self.log.train(step, figures)

    def exclude(self, seconds: float) -> None:
        """Time spent on other things than steps."""
        self._excluded += seconds


def run(
    config: TrainConfig,
    state: TrainState,
    step_function: Step,
    batches: Iterator[Batch],
    store: Store,
    facts: dict[str, Any],
    log: Writer,
    workload: Workload,
    hooks: Hooks,
) -> tuple[TrainState, int | None]:
    """Trains from where `state` stands to `config.num_steps`, or until asked to stop.

    Returns:
      The last state, and the signal that stopped the run before its end, if one did.

    Raises:
      CheckpointError: the run folder cannot be written any more. What was finished is kept.
    """
    first = int(state.step)
    meter = Meter(workload, log)
    try:
        with StopRequest() as stop:
            if first == 0:
                meter.exclude(_validate(state, 0, log, hooks)[0])
            for step in range(first + 1, config.num_steps + 1):
                with PULSE.doing("input"):
                    batch = next(batches)
                state, metrics = step_function(state, batch)
                last, stopping = step == config.num_steps, stop.after(step)
                # The device has this step to do while the rows of the steps before it are written.
                if (step - 1) % config.log_every == 0:
                    meter.write()
                meter.keep(step, metrics)
                figures = None
                if step % config.eval_every == 0 or last:
                    meter.write()
                    seconds, figures = _validate(state, step, log, hooks)
                    meter.exclude(seconds)
                if step % config.checkpoint_every == 0 or last or stopping:
                    # Saving waits for the device: the steps before it are counted first.
                    meter.write()
                    began = time.perf_counter()
                    with PULSE.doing("checkpoint"):
                        store.save(step, to_items(state), facts, figures)
                    log.event(step, "checkpoint")
                    meter.exclude(time.perf_counter() - began)
                PULSE.beat(step)
                if stopping and not last:
                    with PULSE.doing("checkpoint"):
                        store.wait()
                    assert stop.signal is not None
                    log.event(step, "stop", f"signal {stop.signal}")
                    return state, stop.signal
            with PULSE.doing("checkpoint"):
                store.wait()
            log.event(config.num_steps, "stop", "all steps done")
    except OSError as error:
        raise CheckpointError(
            f"run folder '{store.folder.parent}' cannot be written: {error.strerror or error}"
        ) from error
    return state, None


def _validate(state: TrainState, step: int, log: Writer, hooks: Hooks) -> tuple[float, dict[str, float]]:
    """Validates and samples; returns the seconds it took, and the figures."""
    began = time.perf_counter()
    with PULSE.doing("validation"):
        figures = hooks.validate(state.params)
    log.validation(step, {**figures, "seconds": time.perf_counter() - began}, hooks.yardsticks)
    if hooks.sample is not None:
        log.sample(step, *hooks.sample(state.params, state.rng, step))
    return time.perf_counter() - began, figures
