"""Memory against speed: one picture of many layouts."""

from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure

from pathways_lm.report.plots import COLOURS, STYLE, as_svg

Points = Sequence[tuple[float, float]]
"""Memory of a device in GiB, and seconds of a step."""


def frontier_chart(others: Points, frontier: Points, compiled: Points, capacity: float) -> str:
    """An `<svg>` of layouts that fit, those that none beats in both, and what the compiler says of some.

    Args:
      capacity: GiB of a device.
    """
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": "frontier"}):
        figure = Figure(figsize=(8.8, 3.6), layout="constrained")
        axes = figure.subplots()
        axes.set_axisbelow(True)
        axes.grid(axis="both")
        axes.tick_params(length=0)
        axes.scatter(*_columns(others), s=7, color=COLOURS["ink"], alpha=0.35, label="fits, by formulas", linewidths=0)
        axes.plot(*_columns(frontier), color=COLOURS["train"], marker="o", drawstyle="steps-post", label="frontier")
        if compiled:
            columns = _columns(compiled)
            axes.scatter(*columns, s=34, marker="D", color=COLOURS["validation"], label="by the compiler", zorder=3)
        axes.axvline(capacity, color=COLOURS["restart"], linestyle="--", label="what a device has")
        axes.set(xlabel="GiB of a device", ylabel="seconds a step", yscale="log", xlim=(0, capacity * 1.05))
        axes.legend()
        return as_svg(figure)


def _columns(points: Points) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
