"""The curves of several runs, a quantity on each plot and a colour for each run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from pathways_lm.report.plots import STYLE, Chart, as_svg, dress, frame, running_median, thinned
from pathways_lm.report.read import Run, series
from pathways_lm.report.tasks import colour, figures, tasks_of

Points = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class _Recipe:
    title: str
    unit: str
    points: Callable[[Run], Points]
    smooth: bool = False
    """Whether noise is taken out by a running median."""
    framed: bool = False
    """Whether the steep beginning may leave the frame."""
    limits: tuple[float, float | None] | None = None
    """Of the axis, where they do not follow the curves."""
    x: str = "step"


_PERCENT, _FROM_ZERO = (-2.0, 102.0), (0.0, None)


def compared_charts(runs: Sequence[Run], names: Sequence[str]) -> list[Chart]:
    """One chart for each quantity that a run has logged."""
    finished = []
    for recipe in (*_RECIPES, *_of_tasks(runs)):
        with matplotlib.rc_context({**STYLE, "svg.hashsalt": recipe.title}):
            figure = Figure(figsize=(4.4, 2.6), layout="constrained")
            if _draw(figure, recipe, runs, names):
                finished.append(Chart(recipe.title, recipe.unit, as_svg(figure)))
    return finished


def _draw(figure: Figure, recipe: _Recipe, runs: Sequence[Run], names: Sequence[str]) -> bool:
    """Draws a quantity. False when no run has it."""
    axes, last = figure.subplots(), 0.0
    axes.set_xlabel(recipe.x)
    for place, run in enumerate(runs):
        at, values = recipe.points(run)
        if not np.isfinite(values).any():
            continue
        last = max(last, float(at.max()))
        at, values = (running_median if recipe.smooth else thinned)(at, values)
        marker = "o" if len(at) <= 60 and not recipe.smooth else ""
        axes.plot(at, values, color=colour(place), linewidth=1.6, marker=marker, markersize=2.5, label=names[place])
    if not axes.lines:
        return False
    if recipe.framed:
        frame(axes, axes.lines)
    if recipe.limits:
        axes.set_ylim(*recipe.limits)
    dress(axes, last)
    return True


def _validated(key: str) -> Callable[[Run], Points]:
    def points(run: Run) -> Points:
        steps, values = series(run.validation, key)
        # As on the page of one run: the untrained model is no part of a curve.
        return (steps[steps > 0], values[steps > 0]) if len(steps) > 1 else (steps, values)

    return points


def _answered(key: str) -> Callable[[Run], Points]:
    return lambda run: series(run.validation, key)


def _trained(key: str) -> Callable[[Run], Points]:
    return lambda run: series(run.train, key)


def _loss_by_tokens(run: Run) -> Points:
    rows = tuple(row for row in run.train if isinstance(row.get("tokens"), (int, float)))
    _, losses = series(rows, "loss")
    tokens = np.array([row["tokens"] for row in rows if isinstance(row.get("loss"), (int, float))], np.float64)
    return tokens, losses


_RECIPES = (
    _Recipe("Validation loss", "nats per token", _validated("loss"), framed=True),
    _Recipe("Bits per byte", "validation text", _validated("bits_per_byte"), framed=True),
    _Recipe("Accuracy", "% of held-out answers, mean of the tasks", _answered("accuracy"), limits=_PERCENT),
    _Recipe("BLEU", "mean of the tasks", _answered("bleu"), limits=_PERCENT),
    _Recipe("Training loss", "nats per token", _trained("loss"), smooth=True, framed=True),
    _Recipe("Training loss by tokens", "nats per token", _loss_by_tokens, smooth=True, framed=True, x="tokens"),
    _Recipe("Step time", "seconds", _trained("step_seconds"), smooth=True, limits=_FROM_ZERO),
    _Recipe("Speed", "tokens per second", _trained("tokens_per_second"), smooth=True, limits=_FROM_ZERO),
    _Recipe("Learning rate", "", _trained("learning_rate"), limits=_FROM_ZERO),
    _Recipe("Gradient norm", "before clipping", _trained("grad_norm"), smooth=True, framed=True),
)


def _of_tasks(runs: Sequence[Run]) -> list[_Recipe]:
    """The figures of each task's validation, in the order in which the runs tell them."""
    found: dict[tuple[str, str], None] = {}
    for run in runs:
        for task in tasks_of(run):
            names = [name for row in run.validation for name in row.get("tasks", {}).get(task, {})]
            found |= {(name, task): None for name in dict.fromkeys(names)}
    return [_of_task(task, name) for name, task in sorted(found, key=lambda pair: pair[0] == "loss")]


def _of_task(task: str, name: str) -> _Recipe:
    def points(run: Run) -> Points:
        steps, values = figures(run.validation, task, name)
        return (steps[steps > 0], values[steps > 0]) if name == "loss" and len(steps) > 1 else (steps, values)

    unit = {"loss": "nats per token", "accuracy": "% of held-out answers"}.get(name, "")
    title = {"bleu": "BLEU"}.get(name, name.capitalize())
    loss = name == "loss"
    return _Recipe(f"{title} of {task}", unit, points, framed=loss, limits=None if loss else _PERCENT)
