"""The loop: batches in, figures and checkpoints out; and back again after a spike."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from jax import Array

from pathways_lm.checkpoint.store import Store
from pathways_lm.config import TrainConfig
from pathways_lm.errors import CheckpointError, TrainingError
from pathways_lm.models.batch import Batch
from pathways_lm.models.model import Params
from pathways_lm.train.books import Books
from pathways_lm.train.meter import Figures, Meter, Workload, Writer
from pathways_lm.train.profile import Profiler
from pathways_lm.train.pulse import PULSE
from pathways_lm.train.spikes import Rewind, Rewinds, Spikes
from pathways_lm.train.state import TrainState, to_items
from pathways_lm.train.step import Step
from pathways_lm.train.stop import StopRequest

Sample = Callable[[Params, Array, int], Sequence[tuple[str, str]]]
"""Prompts and what the model writes after them, from the parameters, the run's key and the step."""


class Course(Protocol):
    """The batches of a run in order, and whose turn it is."""

    def take(self) -> Batch: ...
    def due(self) -> bool: ...
    def change(self) -> dict[str, float]: ...
    def note(self, nll_T: np.ndarray, tokens_T: np.ndarray) -> None: ...
    def rows_read(self, step: int) -> int: ...
    def batch_size(self, step: int) -> int: ...
    def facts(self) -> dict[str, Any]: ...
    def go_back(self, step: int, facts: dict[str, Any], skips: tuple[tuple[int, int], ...]) -> None: ...
    @property
    def shares(self) -> dict[str, float]: ...


@dataclass(frozen=True)
class Hooks:
    """What is done with the parameters at every validation."""

    validate: Callable[[Params], Figures]
    """Figures of the validation text: `loss` and, where all of it is scored, `bits_per_byte`; metrics of answers."""
    sample: Sample | None
    """Called after `validate`, with the same parameters. None for a model that writes nothing."""
    yardsticks: dict[str, float]
    """Bits per byte of general compressors on the same text."""


@dataclass
class Loop:
    """Trains from where `state` stands to `config.num_steps`, or until asked to stop.

    Raises:
      CheckpointError: the run folder cannot be written any more. What was finished is kept.
      TrainingError: updates are not finite, or spikes do not end.
    """

    config: TrainConfig
    state: TrainState
    step_for: Callable[[int], Step]
    """The step compiled for batches of a size."""
    course: Course
    store: Store
    facts: dict[str, Any]
    """Of the data and the vocabulary, kept with every checkpoint."""
    log: Writer
    workload: Workload
    hooks: Hooks
    books: Books
    spikes: Spikes
    rewinds: Rewinds
    restore: Callable[[int], tuple[TrainState, dict[str, Any]]]
    """The newest checkpoint not behind a step, all later ones put aside: its state and facts."""
    first: bool = True
    """Whether this process writes files."""
    profiler: Profiler | None = None

    def run(self) -> tuple[TrainState, int | None]:
        """Returns the last state, and the signal that stopped the run before its end, if one did."""
        self.meter = Meter(self.workload, self.log, self.course.rows_read, self.config.skips_allowed)
        try:
            with StopRequest() as stop:
                signal = self._steps(stop)
                return self.state, signal
        except OSError as error:
            raise CheckpointError(
                f"run folder '{self.store.folder.parent}' cannot be written: {error.strerror or error}"
            ) from error
        finally:
            if self.profiler is not None:
                self.profiler.close()

    def _steps(self, stop: StopRequest) -> int | None:
        config = self.config
        step = int(self.state.step)
        if step == 0:
            self._validate(0)
            if config.spike_threshold:
                self._save(0)
        self.books.turn("step")
        while step < config.num_steps:
            step = self._step(step)
            last, stopping = step == config.num_steps, stop.after(step)
            figures = None
            if step % config.eval_every == 0 or last:
                step = self._write(step)
                figures = self._validate(step)
            if step % config.checkpoint_every == 0 or last or stopping:
                # Saving waits for the device: the steps before it are counted first.
                step = self._write(step)
                self._save(step, figures)
            PULSE.beat(step)
            if stopping and step < config.num_steps:
                self._finish_saving()
                assert stop.signal is not None
                self.log.event(step, "stop", f"signal {stop.signal}")
                return stop.signal
        self._finish_saving()
        self.log.event(config.num_steps, "stop", "all steps done")
        return None

    def _step(self, done: int) -> int:
        """The step behind `done`; returns how many are done then, which are fewer after a spike."""
        if self.course.due():
            done, before = self._write(done), done
            if done < before:
                return done
            shares = self.course.change()
            self.log.event(done, "shares", "  ".join(f"{task} {share:.3f}" for task, share in shares.items()))
        with self.books.spent("input"):
            batch = self.course.take()
        step_function = self.step_for(self.course.batch_size(done))
        step = done + 1
        if self.profiler is not None:
            self.profiler.before(step, self.state)
        self.state, metrics = step_function(self.state, batch)
        if self.profiler is not None and self.profiler.after(step, step_function, metrics):
            self.log.event(step, "profile", f"steps {self.config.profile_steps} traced")
        # The device has this step to do while the rows of the steps before it are written.
        if done % self.config.log_every == 0:
            before, step = step, self._write(step)
            if step < before:
                return step
        self.meter.keep(step, metrics)
        return step

    def _write(self, step: int) -> int:
        """Logs the steps kept and looks at them. Returns `step`, or one before it if there was a spike."""
        for number, row in self.meter.write(self._more):
            finite = bool(np.isfinite(row["loss"]) and np.isfinite(row["grad_norm"]))
            if self.workload.tasks and finite:
                self.course.note(*row["tasks"])
            if self.spikes.found(float(row["loss"]), float(row["grad_norm"])):
                return self._go_back(number, float(row["loss"]))
        return step

    def _more(self) -> Figures:
        figures: Figures = self.books.rows()
        if self.workload.watts:
            figures["energy_kwh"] = self.workload.watts * sum(self.books.seconds.values()) / 3.6e6
        if self.workload.tasks:
            figures["shares"] = self.course.shares
        return figures

    def _go_back(self, spike: int, loss: float) -> int:
        """PaLM's remedy. Returns the step that training goes on from."""
        config = self.config
        if len(self.rewinds.done) == config.spikes_allowed:
            raise TrainingError(
                f"step {spike} is spike {config.spikes_allowed + 1} of the loss ({loss:.3f}); train.spikes_allowed="
                f"{config.spikes_allowed}: lower optimizer.learning_rate, or raise train.spike_threshold"
            )
        self._finish_saving()
        target = max(spike - 1 - config.spike_rewind, 0)
        reached = [step for step in self.store.steps() if step <= target]
        if not reached:
            raise TrainingError(
                f"step {spike} is a spike of the loss ({loss:.3f}), and no checkpoint up to step {target} is left to "
                "go back to; raise train.checkpoints_kept, or lower train.spike_rewind"
            )
        restored = max(reached)
        at = max(restored, target)
        rows = config.spike_skip * self.course.batch_size(at)
        self.rewinds.add(Rewind(spike, restored, at, rows), write=self.first)
        self.state, facts = self.restore(restored)
        # That of an earlier step, where the one meant is damaged.
        restored = int(self.state.step)
        self.meter.forget()
        self.spikes.restore(facts["spikes"])
        self.course.go_back(restored, facts, self.rewinds.skips)
        self.books.lose(facts["productive_seconds"])
        what = f"spike at step {spike} (loss {loss:.3f}): {config.spike_skip} batches skipped from step {at + 1} on"
        self.log.event(restored, "rewind", what)
        return restored

    def _save(self, step: int, figures: Figures | None = None) -> None:
        began = time.perf_counter()
        with self.books.spent("checkpoint"):
            productive = self.books.seconds["step"]
            facts = {**self.facts, **self.course.facts(), "spikes": self.spikes.to_json()}
            self.store.save(step, to_items(self.state), {**facts, "productive_seconds": productive}, figures)
            self.log.event(step, "checkpoint")
        self.meter.exclude(time.perf_counter() - began)

    def _finish_saving(self) -> None:
        with self.books.spent("checkpoint"):
            self.store.wait()

    def _validate(self, step: int) -> Figures:
        began = time.perf_counter()
        with self.books.spent("validation"):
            figures = self.hooks.validate(self.state.params)
            self.log.validation(step, {**figures, "seconds": time.perf_counter() - began}, self.hooks.yardsticks)
            for prompt, text in self.hooks.sample(self.state.params, self.state.rng, step) if self.hooks.sample else ():
                self.log.sample(step, prompt, text)
        self.meter.exclude(time.perf_counter() - began)
        return figures
