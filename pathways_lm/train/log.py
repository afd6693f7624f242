"""Where a run's figures go: metrics.jsonl, TensorBoard, and a progress bar."""

import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pathways_lm.config.train import HIGHER_IS_BETTER
from pathways_lm.train.files import Events, Lines


class Log:
    """Writes each figure once, in the order it came, at once: a kill loses none.

    Raises OSError where the run folder cannot be written.
    """

    def __init__(self, metrics: Path, samples: Path, tensorboard: Path, console: Console, total_steps: int, step: int):
        self.console = console
        self._metrics = Lines(metrics)
        self._samples = Lines(samples)
        self._tensorboard = Events(tensorboard)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console,
            # Without a terminal there is nothing to redraw: plain lines are printed instead.
            disable=not console.is_terminal,
        )
        self._bar = self._progress.add_task("training", total=total_steps, completed=step, figures="")

    def __enter__(self) -> "Log":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        self._metrics.close()
        self._samples.close()
        self._tensorboard.close()

    def train(self, step: int, figures: dict[str, Any]) -> None:
        """Figures of a training step; those of layers go to the file alone."""
        self._write("train", step, figures)
        loss = "not finite" if figures["loss"] is None else f"{figures['loss']:.3f}"
        text = f"loss {loss}  {figures['tokens_per_second']:,.0f} tokens/s"
        if "mfu" in figures:
            text += f"  MFU {figures['mfu']:.1%}"
        self._progress.update(self._bar, completed=step, figures=text)
        if not self.console.is_terminal:
            self.console.print(f"step {step}  {text}", highlight=False, soft_wrap=True)

    def validation(self, step: int, figures: dict[str, Any], yardsticks: dict[str, float]) -> None:
        """Validation, with what general compressors make of the same text."""
        self._write("validation", step, figures)
        text = f"step {step}  validation {figures['loss']:.4f} nats/token"
        if "bits_per_byte" in figures:
            beside = "  ".join(f"{name} {bits:.3f}" for name, bits in yardsticks.items())
            text += f"  [bold]{figures['bits_per_byte']:.4f} bits/byte[/bold]  ({beside})"
        text += "".join(f"  {name} {figures[name]:.1f}" for name in HIGHER_IS_BETTER if name in figures)
        self.console.print(text, highlight=False, soft_wrap=True)

    def event(self, step: int, what: str, detail: str = "") -> None:
        """Something that happened to the run."""
        self._metrics.add({"kind": "event", "step": step, "time": time.time(), "what": what, "detail": detail})

    def sample(self, step: int, prompt: str, text: str) -> None:
        """Text written by the model."""
        self._samples.add({"step": step, "time": time.time(), "prompt": prompt, "text": text})
        self._tensorboard.text(step, "sample", f"```\n{prompt}{text}\n```")

    def _write(self, kind: str, step: int, figures: dict[str, Any]) -> None:
        self._metrics.add({"kind": kind, "step": step, "time": time.time(), **figures})
        self._tensorboard.scalars(step, dict(_numbers(kind, figures)))


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """Single numbers by path, without lists and what is not known."""
    if isinstance(value, dict):
        for inner, each in value.items():
            yield from _numbers(f"{name}/{inner}", each)
    elif isinstance(value, (int, float)):
        yield name, value


class Silence:
    """The log of a process that is not the first: writes nothing."""

    def __enter__(self) -> "Silence":
        return self

    def __exit__(self, *unused: object) -> None:
        return None

    def train(self, step: int, figures: dict[str, Any]) -> None:
        return None

    def validation(self, step: int, figures: dict[str, float], yardsticks: dict[str, float]) -> None:
        return None

    def event(self, step: int, what: str, detail: str = "") -> None:
        return None

    def sample(self, step: int, prompt: str, text: str) -> None:
        return None
