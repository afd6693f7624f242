"""Several runs on one page: their curves, what of their configs differs, their figures and samples side by side."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pathways_lm.errors import CheckpointError
from pathways_lm.report.compare_plots import compared_charts
from pathways_lm.report.html import card, curves, document, escaped, section, table, write_whole
from pathways_lm.report.read import Run, read_run, series
from pathways_lm.report.tasks import colour
from pathways_lm.report.words import big, duration, setting

_SAMPLES_SHOWN = 24


def write_comparison(folders: Sequence[str | Path], path: str | Path) -> Path:
    """Writes the page, whole or not at all, and returns its path.

    Raises CheckpointError where one of the folders is no run folder or comes twice, or the page cannot be written.
    """
    twice = [
        str(folder) for folder, count in Counter(Path(folder).resolve() for folder in folders).items() if count > 1
    ]
    if twice:
        raise CheckpointError(f"'{twice[0]}' is given twice; a run is compared with others")
    path = Path(path)
    write_whole(path, comparison([read_run(folder) for folder in folders]))
    return path


def _resolved(folder: str | Path) -> str:
    return str(Path(folder).resolve())


def comparison(runs: Sequence[Run]) -> str:
    """The whole page of at least two runs."""
    names = names_of(runs)
    sections = (_curves(runs, names), _figures(runs, names), _differences(runs, names), _samples(runs, names))
    body = f"{_key(names)}\n{''.join(sections)}"
    return document(f"{' · '.join(names)}: comparison", "Comparison", f"{len(runs)} runs", body)


def names_of(runs: Sequence[Run]) -> list[str]:
    """The names of the runs' folders; whole paths where two have the same."""
    names = [run.folder.resolve().name for run in runs]
    return [name if names.count(name) == 1 else str(run.folder) for name, run in zip(names, runs, strict=True)]


def _key(names: Sequence[str]) -> str:
    items = [
        f'<span><i style="background:{colour(place)}"></i><b>{escaped(name)}</b></span>'
        for place, name in enumerate(names)
    ]
    return f'<div class="key runs">{"".join(items)}</div>'


def _curves(runs: Sequence[Run], names: Sequence[str]) -> str:
    charts = compared_charts(runs, names)
    if not charts:
        return section("Curves", '<p class="note">Nothing is logged yet.</p>')
    return section("Curves", curves(charts), "Figures of training are running medians.")


def _figures(runs: Sequence[Run], names: Sequence[str]) -> str:
    """The last figures of each run, a row a figure."""
    columns = [_last(run) for run in runs]
    told = dict.fromkeys(name for column in columns for name in column)
    rows = [[name, *(column.get(name) for column in columns)] for name in told]
    return section("Figures", card(table(("", *names), rows, numbers=range(1, len(names) + 1))))


def _last(run: Run) -> dict[str, str]:
    """What a run came to, by the names of the table's rows."""
    _, losses = series(run.validation, "loss")
    _, tokens = series(run.train, "tokens")
    _, speeds = series(run.train, "tokens_per_second")
    _, seconds = series(run.train, "step_seconds")
    step = max((row["step"] for row in run.train + run.validation), default=0)
    count = run.facts.get("num_params") or sum(row.get("count", 0) for row in run.parameters)
    told: dict[str, str] = {"parameters": big(count) if count else "", "steps": f"{step:,}"}
    if len(tokens):
        told["tokens seen"] = big(tokens[-1])
    if len(losses):
        told["validation loss"] = f"{losses[-1]:.4f}"
        told["its lowest"] = f"{np.nanmin(losses):.4f}" if np.isfinite(losses).any() else ""
    for name, title, form in (("bits_per_byte", "bits per byte", ".4f"), ("accuracy", "accuracy", ".1f")):
        _, values = series(run.validation, name)
        if len(values):
            told[title] = format(values[-1], form)
    for task, figures in (run.validation[-1].get("tasks", {}) if run.validation else {}).items():
        for name, value in figures.items():
            if isinstance(value, (int, float)):
                told[f"{name} of {task}"] = f"{value:.4f}" if name == "loss" else f"{value:.1f}"
    for title, values, form in (("seconds a step", seconds, ".4g"), ("tokens per second", speeds, ",.0f")):
        if np.isfinite(values).any():
            told[title] = format(float(np.nanmedian(values)), form)
    return told | ({"wall time": duration(run.seconds)} if run.seconds else {})


def _differences(runs: Sequence[Run], names: Sequence[str]) -> str:
    """The fields whose values are not the same in all runs."""
    flat = [_flat(run.config) for run in runs]
    fields = dict.fromkeys(field for values in flat for field in values if field != "name")
    differing = [field for field in fields if any(values.get(field) != flat[0].get(field) for values in flat)]
    rows = [[field, *(setting(values[field]) if field in values else None for values in flat)] for field in differing]
    if not rows:
        return section("Config", '<p class="note">The configs are the same.</p>')
    note = f"Where they differ: {len(rows)} of {len(fields)} fields."
    return section("Config", card(table(("Field", *names), rows, (), long=range(1, len(names) + 1))), note)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _samples(runs: Sequence[Run], names: Sequence[str]) -> str:
    """For each prompt, the last that each run wrote after it."""
    written = [{str(row.get("prompt", "")): row for row in run.samples} for run in runs]
    prompts = list(dict.fromkeys(prompt for each in written for prompt in each))[:_SAMPLES_SHOWN]
    if not prompts:
        return ""
    blocks = [_sample(prompt, [each.get(prompt) for each in written], names) for prompt in prompts]
    return section("Samples", "".join(blocks), "The prompt is marked; what stands behind it, each run wrote last.")


def _sample(prompt: str, rows: Sequence[Mapping[str, Any] | None], names: Sequence[str]) -> str:
    columns = []
    for place, (name, row) in enumerate(zip(names, rows, strict=True)):
        head = f'<i style="background:{colour(place)}"></i><b>{escaped(name)}</b>'
        if row is None:
            columns.append(f'<div><div class="key"><span>{head} not asked</span></div></div>')
            continue
        text = f'<pre><span class="prompt">{escaped(prompt)}</span>{escaped(str(row.get("text", "")))}</pre>'
        columns.append(f'<div><div class="key"><span>{head} step {row["step"]:,}</span></div>{text}</div>')
    return f'<div class="card beside">{"".join(columns)}</div>'
