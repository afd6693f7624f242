"""The picture of a profile."""

import matplotlib
from matplotlib.figure import Figure

from pathways_lm.report.plots import COLOURS, STYLE, Chart, as_svg
from pathways_lm.report.profile import Profile


def draw_profile(profile: Profile) -> Chart:
    """A bar for each part, forward and backward one behind the other."""
    title, unit = "Time of a step", "ms, added over threads"
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=(4.4, 0.6 + 0.25 * len(profile.parts)), layout="constrained")
        axes = figure.subplots()
        names = [part.scope for part in profile.parts]
        forward = [part.forward * 1e3 for part in profile.parts]
        backward = [part.backward * 1e3 for part in profile.parts]
        axes.barh(names, forward, color=COLOURS["train"], label="forward")
        if any(backward):
            axes.barh(names, backward, left=forward, color=COLOURS["validation"], label="backward")
            axes.legend(loc="lower right")
        axes.invert_yaxis()
        axes.tick_params(length=0)
        axes.set_axisbelow(True)
        axes.grid(axis="x")
        return Chart(title, unit, as_svg(figure))
