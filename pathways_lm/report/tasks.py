"""Curves of a run's tasks: how much of each was learned from, and how well it is predicted."""

import numpy as np
from matplotlib.axes import Axes

from pathways_lm.report.read import Row, Run, series

# Okabe and Ito's, which colour-blind readers tell apart, without the black; readable on white and on dark.
_PALETTE = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b3a300", "#7f7f7f")


def tasks_of(run: Run) -> list[str]:
    """The tasks whose losses are told, in the order of the log."""
    return list(next((row["tasks"] for row in run.train + run.validation if isinstance(row.get("tasks"), dict)), {}))


def colour(place: int) -> str:
    """Of the task at that place."""
    return _PALETTE[place % len(_PALETTE)]


def draw_shares(axes: Axes, run: Run) -> None:
    """Areas that add up to 1."""
    rows = [row for row in run.train if isinstance(row.get("shares"), dict)]
    tasks = tasks_of(run)
    if not rows or not tasks:
        return
    steps = np.array([row["step"] for row in rows])
    shares = np.array([[float(row["shares"].get(task, 0.0)) for row in rows] for task in tasks])
    colours = [colour(place) for place in range(len(tasks))]
    axes.stackplot(steps, shares, labels=tasks, colors=colours, alpha=0.85, step="post")
    axes.set_ylim(0, 1)
    axes.legend(loc="lower right", fontsize="small")


def draw_losses(axes: Axes, run: Run) -> None:
    """A line for each task: of the validation text, faint those of training."""
    for place, task in enumerate(tasks_of(run)):
        steps, losses = _losses(run.train, task)
        axes.plot(steps, losses, color=colour(place), linewidth=0.8, alpha=0.35)
        steps, losses = _losses(run.validation, task)
        axes.plot(steps, losses, color=colour(place), linewidth=1.6, marker="o", markersize=2.5, label=task)
    if axes.lines:
        axes.legend(loc="upper right", fontsize="small")
        axes.set_ylim(bottom=0)


def draw_accuracy(axes: Axes, run: Run) -> None:
    """A line for each task whose answers were looked at, or one for a run of a single task."""
    _draw_metric(axes, run, "accuracy")


def draw_bleu(axes: Axes, run: Run) -> None:
    """The same."""
    _draw_metric(axes, run, "bleu")


def _draw_metric(axes: Axes, run: Run, metric: str) -> None:
    for place, task in enumerate(tasks_of(run)):
        steps, values = figures(run.validation, task, metric)
        if np.isfinite(values).any():
            axes.plot(steps, values, color=colour(place), linewidth=1.6, marker="o", markersize=2.5, label=task)
    if axes.lines:
        axes.legend(loc="lower right", fontsize="small")
    else:
        steps, values = series(run.validation, metric)
        if np.isfinite(values).any():
            axes.plot(steps, values, color=colour(0), linewidth=1.6, marker="o", markersize=2.5)
    if axes.lines:
        axes.set_ylim(-2, 102)


def figures(rows: tuple[Row, ...], task: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of a task's figure, of the rows that tell it; NaN where it is not known."""
    told = [(row["step"], row["tasks"][task]) for row in rows if task in row.get("tasks", {})]
    return series(tuple({"step": step, name: each[name]} for step, each in told if name in each), name)


def _losses(rows: tuple[Row, ...], task: str) -> tuple[np.ndarray, np.ndarray]:
    found = [(row["step"], row["tasks"][task].get("loss")) for row in rows if task in row.get("tasks", {})]
    pairs = [(step, np.nan if loss is None else loss) for step, loss in found]
    steps, losses = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    return steps, losses
