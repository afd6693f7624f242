"""A run folder as values: what the training loop wrote down, with restarts already settled."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pathways_lm.errors import CheckpointError

Row = dict[str, Any]

_BEGINNINGS = ("start", "resume")
"""The events with which a process takes up a run."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run folder tells. Rows are in the order of their steps, events in the order of the file."""

    folder: Path
    config: dict[str, Any]
    facts: dict[str, Any]
    """`run.json`; empty when the run has none."""
    train: tuple[Row, ...]
    validation: tuple[Row, ...]
    events: tuple[Row, ...]
    samples: tuple[Row, ...]
    parameters: tuple[Row, ...]
    seconds: float
    """Time spent by all processes that worked on the run; the pauses between them are left out."""
    unreadable: int
    """Lines that were no JSON object with a step, in `metrics.jsonl` and `samples.jsonl`."""

    @property
    def name(self) -> str:
        return str(self.config.get("name") or self.folder.resolve().name)

    @property
    def resumed_at(self) -> list[int]:
        """The steps from which the run was resumed."""
        return sorted({row["step"] for row in self.events if row.get("what") == "resume"})

    @property
    def yardsticks(self) -> dict[str, float]:
        """Bits per byte of general compressors on the validation text, by their names."""
        yardsticks = self.facts.get("corpus", {}).get("yardsticks", {})
        return {name: bits for name, bits in yardsticks.items() if isinstance(bits, (int, float))}


def series(rows: tuple[Row, ...], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the rows that hold a number under `key`; infinite values become NaN."""
    pairs = [(row["step"], row[key]) for row in rows if isinstance(row.get(key), (int, float))]
    steps, values = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    return steps, np.where(np.isfinite(values), values, np.nan)


def read_run(folder: str | Path) -> Run:
    """Reads what is there. Raises CheckpointError when `folder` is no run folder or a file in it is broken."""
    folder = Path(folder)
    for name in ("config.json", "metrics.jsonl"):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} is not a run folder: it has no {name}")
    rows, unreadable = _lines(folder / "metrics.jsonl")
    samples, unreadable_samples = _lines(folder / "samples.jsonl")
    latest = {(row["step"], row.get("prompt")): row for row in samples}
    return Run(
        folder=folder,
        config=_json(folder / "config.json", dict),
        facts=_json(folder / "run.json", dict),
        train=_history(rows, "train"),
        validation=_history(rows, "validation"),
        events=tuple(row for row in rows if row.get("kind") == "event"),
        samples=tuple(sorted(latest.values(), key=_step)),
        parameters=tuple(_json(folder / "parameters.json", list)),
        seconds=_seconds(rows),
        unreadable=unreadable + unreadable_samples,
    )


def _history(rows: list[Row], kind: str) -> tuple[Row, ...]:
    """The rows that led to the run's present state.

    A process that resumes at a step, or goes back to it after a spike, does all later ones again: what was written
    about them is forgotten. Of several rows for one step the last counts.
    """
    kept: dict[int, Row] = {}
    for row in rows:
        if _begins(row) or row.get("what") == "rewind":
            kept = {step: old for step, old in kept.items() if step <= row["step"]}
        elif row.get("kind") == kind:
            kept[row["step"]] = row
    return tuple(sorted(kept.values(), key=_step))


def _seconds(rows: list[Row]) -> float:
    """The sum over processes of the time from the first row to the last."""
    total, first = 0.0, math.nan
    last = first
    for row in rows:
        if not isinstance(row.get("time"), (int, float)):
            continue
        if _begins(row) or math.isnan(first):
            total += 0.0 if math.isnan(first) else last - first
            first = row["time"]
        last = row["time"]
    return total if math.isnan(first) else total + last - first


def _begins(row: Row) -> bool:
    return row.get("kind") == "event" and row.get("what") in _BEGINNINGS


def _step(row: Row) -> int:
    return int(row["step"])


def _lines(path: Path) -> tuple[list[Row], int]:
    """The JSON objects of a file, one a line, and how many lines are none.

    A kill can cut a line off, and the resumed process then writes on below it, so such a line may
    stand anywhere. Only "\\n" ends a line: text may hold U+2028 and others that `splitlines` knows.
    """
    lines = [line for line in _text(path).split("\n") if line.strip()] if path.is_file() else []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows, len(lines) - len(rows)


def _json(path: Path, kind: type) -> Any:
    """The content of a JSON file, or an empty `kind` where there is no such file."""
    if not path.is_file():
        return kind()
    try:
        value = json.loads(_text(path))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, kind):
        raise CheckpointError(f"{path} must hold a JSON {'object' if kind is dict else 'list'}")
    return value


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
