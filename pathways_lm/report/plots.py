"""Curves of a run: SVG for the page, one PNG for a README.

Every colour is written into the SVG as a CSS variable with the light colour as its fallback, so that
one picture follows the page from light to dark. Blue and vermilion are those of Okabe and Ito, which
colour-blind readers tell apart.
"""

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from pathways_lm.report import tasks
from pathways_lm.report.read import Run, series

COLOURS = {
    "card": "#ffffff",
    "ink": "#4b5362",
    "grid": "#dfe3e9",
    "train": "#0072b2",
    "validation": "#d55e00",
    "restart": "#b08a3e",
}
_BUCKETS = 500
"""Groups of rows into which a longer curve is cut; each is drawn by its extremes and its median."""


@dataclass(frozen=True)
class Chart:
    """A finished curve."""

    title: str
    unit: str
    svg: str


@dataclass(frozen=True)
class _Recipe:
    title: str
    unit: str
    draw: Callable[[Axes, Run], None]


def charts(run: Run) -> list[Chart]:
    """One chart for each quantity that the run has logged."""
    finished = []
    for recipe in _RECIPES:
        with matplotlib.rc_context({**STYLE, "svg.hashsalt": recipe.title}):
            figure = Figure(figsize=(4.4, 2.6), layout="constrained")
            if _draw(figure.subplots(), run, recipe):
                finished.append(Chart(recipe.title, recipe.unit, as_svg(figure)))
    return finished


def save_picture(run: Run, path: str | Path) -> None:
    """Loss and bits per byte side by side on white, a PNG of 1200 x 450 pixels."""
    with matplotlib.rc_context({**STYLE, "font.size": 12}):
        layout = ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.12, wspace=0.05)
        figure = Figure(figsize=(12, 4.5), dpi=100, layout=layout, facecolor="white")
        for axes, recipe in zip(figure.subplots(1, 2), (_LOSS, _BITS), strict=True):
            _draw(axes, run, recipe)
            axes.set_title(recipe.title, loc="left", weight="bold", color=COLOURS["ink"], pad=10)
            axes.set_title(recipe.unit, loc="right", size=11, color=COLOURS["ink"], pad=10)
        figure.savefig(path, format="png")


def _draw(axes: Axes, run: Run, recipe: _Recipe) -> bool:
    """Draws a quantity and the restarts. False when there is nothing to draw."""
    axes.set_xlabel("step")
    recipe.draw(axes, run)
    if not axes.lines and not axes.collections:
        return False
    dress(axes, max((row["step"] for row in run.train + run.validation), default=0))
    for step in run.resumed_at:
        axes.axvline(step, color=COLOURS["restart"], linewidth=0.8, linestyle=(0, (2, 2)), zorder=0.9)
    return True


def dress(axes: Axes, last: float) -> None:
    """Grid, ticks and their numbers of a curve that goes from 0 to `last`."""
    axes.set_axisbelow(True)
    axes.grid(axis="y")
    axes.tick_params(length=0)
    if axes.get_xscale() == "linear":
        last = last or 1
        axes.set_xlim(-0.02 * last, 1.02 * last)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    else:
        axes.xaxis.set_major_locator(LogLocator(subs=(1,)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(_short))
    if axes.get_ylim()[1] >= 1e4 or axes.get_yscale() == "log":
        axes.yaxis.set_major_formatter(FuncFormatter(_short))
    else:
        axes.ticklabel_format(axis="y", style="plain", useOffset=False)


def _draw_loss(axes: Axes, run: Run) -> None:
    """The labelled curves decide the frame: a single spike of the faint one may leave it."""
    _draw_loss_on_log_steps(axes, run)
    axes.set_xscale("linear")
    frame(axes, [line for line in axes.lines if not str(line.get_label()).startswith("_")])


def _draw_loss_on_log_steps(axes: Axes, run: Run) -> None:
    _train_curve(axes, run, "loss", label="train")
    _validation_curve(axes, run, "loss", label="validation")
    if axes.lines:
        axes.legend(loc="upper right")
    if any(row["step"] > 0 for row in run.train + run.validation):
        axes.set_xscale("log", nonpositive="mask")


def _draw_bits(axes: Axes, run: Run) -> None:
    _validation_curve(axes, run, "bits_per_byte")
    if not axes.lines:
        return
    frame(axes, axes.lines, run.yardsticks.values())
    for name, bits in run.yardsticks.items():
        axes.axhline(bits, color=COLOURS["ink"], linewidth=1, linestyle=(0, (5, 3)))
        # The greatest is labelled above its line and the others below, so that near lines keep their labels apart.
        above = bits == max(run.yardsticks.values())
        axes.annotate(
            f"{name}: {bits:.3f}",
            (1, bits),
            xycoords=("axes fraction", "data"),
            xytext=(-4, 5 if above else -5),
            textcoords="offset points",
            horizontalalignment="right",
            verticalalignment="bottom" if above else "top",
            color=COLOURS["ink"],
            bbox={"facecolor": COLOURS["card"], "edgecolor": "none", "pad": 1.5},
        )


def _draw_learning_rate(axes: Axes, run: Run) -> None:
    _smooth_curve(axes, run, "learning_rate")
    axes.set_ylim(bottom=0)


def _draw_gradient_norm(axes: Axes, run: Run) -> None:
    _train_curve(axes, run, "grad_norm")
    if any(np.nanmax(line.get_ydata()) > 0 for line in axes.lines):
        axes.set_yscale("log", nonpositive="mask")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())


def _draw_parameter_norm(axes: Axes, run: Run) -> None:
    _smooth_curve(axes, run, "param_norm")


def _draw_z_loss(axes: Axes, run: Run) -> None:
    _train_curve(axes, run, "z_loss")


def _draw_speed(axes: Axes, run: Run) -> None:
    _train_curve(axes, run, "tokens_per_second")
    axes.set_ylim(bottom=0)


def _train_curve(axes: Axes, run: Run, key: str, label: str | None = None) -> None:
    """The logged values, faint, and their running median; nothing when there are none."""
    steps, values = series(run.train, key)
    if not np.isfinite(values).any():
        return
    colour = COLOURS["train"]
    axes.plot(*thinned(steps, values), color=colour, alpha=0.3, linewidth=0.9, marker=_marker(steps))
    axes.plot(*running_median(steps, values), color=colour, linewidth=1.8, label=label)


def frame(axes: Axes, lines: Iterable[Line2D], shown: Iterable[float] = ()) -> None:
    """Fits the axis to the curves and to the values `shown`.

    The steep first twentieth of the run may leave the frame, or all that follows would look flat.
    """
    points = np.concatenate([np.empty((0, 2)), *(np.asarray(line.get_xydata()) for line in lines)])
    steps, values = points[np.isfinite(points[:, 1])].T
    if not len(values):
        return
    low = min([values.min(), *shown])
    high = max([values[steps >= 0.05 * steps.max()].max(), *shown])
    if low < high:
        room = 0.09 * (high - low)
        axes.set_ylim(low - room, high + room)


def _smooth_curve(axes: Axes, run: Run, key: str) -> None:
    """The logged values, for what has no noise; nothing when there are none."""
    steps, values = series(run.train, key)
    if np.isfinite(values).any():
        axes.plot(*thinned(steps, values), color=COLOURS["train"], linewidth=1.8, marker=_marker(steps))


def _validation_curve(axes: Axes, run: Run, key: str, label: str | None = None) -> None:
    steps, values = series(run.validation, key)
    if len(steps) > 1:
        # A line from the untrained model to the first validation after it would tell of a course nobody measured.
        steps, values = steps[steps > 0], values[steps > 0]
    if not np.isfinite(values).any():
        return
    marker = "o" if len(steps) <= 60 else ""
    axes.plot(steps, values, color=COLOURS["validation"], linewidth=1.8, marker=marker, label=label)


def _marker(steps: np.ndarray) -> str:
    """A lone point needs a dot to be seen."""
    return "o" if len(steps) == 1 else ""


def _buckets(steps: np.ndarray, values: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows in at most `_BUCKETS` neighbouring groups, without those that hold no number."""
    steps, values = steps[np.isfinite(values)], values[np.isfinite(values)]
    edges = np.arange(1, len(values))
    if len(values) > _BUCKETS:
        # The groups grow along the run, or a logarithmic axis would show only a few of them at its start.
        edges = np.unique((len(values) * np.linspace(0, 1, _BUCKETS + 1)[1:-1] ** 2).astype(int).clip(min=1))
    return list(zip(np.split(steps, edges), np.split(values, edges), strict=True))


def thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The curve as it is when it is short, else the least and the greatest row of each bucket, in order."""
    if len(values) <= 2 * _BUCKETS:
        return steps, values
    points = []
    for bucket_steps, bucket_values in _buckets(steps, values):
        for index in sorted({bucket_values.argmin(), bucket_values.argmax()}):
            points.append((bucket_steps[index], bucket_values[index]))
    thin_steps, thin_values = np.array(points).T
    return thin_steps, thin_values


def running_median(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Medians over a window of about a fifteenth of the run, at least five buckets."""
    buckets = _buckets(steps, values)
    middles = np.array([np.mean(bucket) for bucket, _ in buckets])
    medians = np.array([np.median(bucket) for _, bucket in buckets])
    widest = max(2, len(medians) // 30)
    # At the start, where curves are steep, the window shrinks on both sides: it stays centred and bends nothing.
    reach = [min(widest, index) for index in range(len(medians))]
    return middles, np.array([np.median(medians[i - r : i + r + 1]) for i, r in enumerate(reach)])


def _short(value: float, _position: int | None = None) -> str:
    """12000 as 12k."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.4g}{name}"
    return f"{value:.4g}"


def as_svg(figure: Figure) -> str:
    """The figure as an `<svg>` element that fills the width it is given and takes its colours from the page."""
    buffer = io.StringIO()
    nothing_told = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing_told)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    start, rest = svg.split(">", 1)
    box = start.split('viewBox="')[1].split('"')[0]
    for name, colour in COLOURS.items():
        rest = rest.replace(colour, f"var(--{name}, {colour})")
    return f'<svg viewBox="{box}" xmlns:xlink="http://www.w3.org/1999/xlink" aria-hidden="true">{rest}'


STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9,
    "axes.edgecolor": COLOURS["grid"],
    "axes.labelcolor": COLOURS["ink"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": COLOURS["grid"],
    "grid.linewidth": 0.8,
    "legend.edgecolor": "none",
    "legend.facecolor": COLOURS["card"],
    "legend.labelcolor": COLOURS["ink"],
    "lines.markersize": 4,
    "xtick.color": COLOURS["ink"],
    "ytick.color": COLOURS["ink"],
}
_LOSS = _Recipe("Loss", "nats per token", _draw_loss)
_BITS = _Recipe("Bits per byte", "validation text", _draw_bits)
_RECIPES = (
    _LOSS,
    _BITS,
    _Recipe("Loss, logarithmic steps", "nats per token", _draw_loss_on_log_steps),
    _Recipe("Accuracy", "% of held-out answers that are right", tasks.draw_accuracy),
    _Recipe("BLEU", "of answers to held-out inputs", tasks.draw_bleu),
    _Recipe("Loss of each task", "nats per token", tasks.draw_losses),
    _Recipe("Shares of the tasks", "of the rows of a batch", tasks.draw_shares),
    _Recipe("Learning rate", "", _draw_learning_rate),
    _Recipe("Gradient norm", "before clipping", _draw_gradient_norm),
    _Recipe("Parameter norm", "", _draw_parameter_norm),
    _Recipe("Z-loss", "", _draw_z_loss),
    _Recipe("Speed", "tokens per second", _draw_speed),
)
