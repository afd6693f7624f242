"""`report.html`: a run on one page."""

from pathlib import Path

import numpy as np

from pathways_lm.report.html import (
    Card,
    card,
    cards,
    curves,
    document,
    escaped,
    folded,
    is_number,
    section,
    table,
    write_whole,
)
from pathways_lm.report.plots import charts
from pathways_lm.report.profile import profile_of
from pathways_lm.report.profile_plot import draw_profile
from pathways_lm.report.read import Row, Run, read_run, series
from pathways_lm.report.words import big, clock, duration, setting

_SAMPLES_SHOWN = 12
"""Samples in the open list; the earlier ones are folded away below it."""
_EVENTS_SHOWN = 15
"""A longer list of events is folded away."""


def write_report(folder: str | Path, path: str | Path | None = None) -> Path:
    """Writes the page, by default as `report.html` into the run folder, whole or not at all, and returns its path.

    Raises CheckpointError when `folder` is no run folder or the page cannot be written.
    """
    run = read_run(folder)
    path = Path(path) if path else run.folder / "report.html"
    write_whole(path, page(run))
    return path


def page(run: Run) -> str:
    """The whole page."""
    told = (_curves, _samples, _books, _profile, _corpus, _parameters, _config, _events)
    sections = [each(run) for each in told]
    body = f"{_headline(run)}\n{''.join(sections)}<footer>{escaped(_footer(run))}</footer>\n"
    return document(f"{run.name}: training report", run.name, _progress(run), body)


def _progress(run: Run) -> str:
    """From when to when the run wrote, and the last that happened."""
    times = [row["time"] for row in run.train + run.validation + run.events if is_number(row.get("time"))]
    parts = [f"{clock(min(times))} to {clock(max(times))} UTC"] if times else []
    parts += [f"last event: {run.events[-1].get('what')} at step {run.events[-1]['step']:,}"] if run.events else []
    return " · ".join(parts)


def _headline(run: Run) -> str:
    """The numbers to know, as cards; what the run has not told is left out."""
    told = (
        _size(run),
        _steps(run),
        _tokens(run),
        _loss(run),
        _bits(run),
        _accuracy(run),
        _speed(run),
        _time(run),
        _goodput(run),
        _device(run),
    )
    return cards([each for each in told if each])


def _size(run: Run) -> Card | None:
    count = run.facts.get("num_params") or sum(row.get("count", 0) for row in run.parameters)
    layers = run.config.get("model", {}).get("num_layers")
    width = run.config.get("model", {}).get("embed_dim")
    shape = f"{count:,}" + (f" · {layers} layers of width {width}" if layers and width else "")
    return ("Parameters", big(count), shape) if count else None


def _steps(run: Run) -> Card | None:
    planned = run.config.get("train", {}).get("num_steps")
    batch, length = (run.config.get("data", {}).get(key) for key in ("batch_size", "sequence_length"))
    step = max((row["step"] for row in run.train + run.validation), default=0)
    notes = [f"of {planned:,}"] if planned else []
    notes += [f"batches of {batch:,} × {length:,} tokens"] if batch and length else []
    return "Steps", f"{step:,}", " · ".join(notes)


def _tokens(run: Run) -> Card | None:
    _, tokens = series(run.train, "tokens")
    if not len(tokens):
        return None
    tasks = run.facts.get("corpus", {}).get("tasks", {})
    corpus = sum(splits.get("train", {}).get("tokens", 0) for splits in tasks.values())
    passes = f"{tokens[-1] / corpus:.2f} × the training corpus" if corpus else ""
    return "Tokens seen", big(tokens[-1]), passes


def _loss(run: Run) -> Card | None:
    steps, losses = series(run.validation, "loss")
    if not len(losses):
        return None
    note = "nats per token"
    if np.isfinite(losses).any():
        best = np.nanargmin(losses)
        note += f" · best {losses[best]:.4f} at step {steps[best]:,.0f}" if best < len(losses) - 1 else " · its lowest"
    return "Validation loss", f"{losses[-1]:.4f}", note


def _bits(run: Run) -> Card | None:
    _, bits = series(run.validation, "bits_per_byte")
    if not len(bits):
        return None
    compared = [
        f"{abs(1 - bits[-1] / yardstick):.1%} {'below' if bits[-1] < yardstick else 'above'} {name} ({yardstick:.3f})"
        for name, yardstick in run.yardsticks.items()
        if np.isfinite(bits[-1]) and yardstick
    ]
    return "Bits per byte", f"{bits[-1]:.3f}", " · ".join(compared)


def _accuracy(run: Run) -> Card | None:
    """The last figure of the answers to held-out pairs, and each task's."""
    steps, accuracies = series(run.validation, "accuracy")
    if not len(accuracies):
        return None
    told = run.validation[-1].get("tasks", {})
    each = [f"{task} {figures['accuracy']:.1f}%" for task, figures in told.items() if "accuracy" in figures]
    best = np.argmax(np.nan_to_num(accuracies, nan=-1.0))
    notes = [f"best {accuracies[best]:.1f}% at step {steps[best]:,.0f}"] if best < len(accuracies) - 1 else []
    return "Accuracy", f"{accuracies[-1]:.1f}%", " · ".join(each + notes) or "of held-out answers"


def _speed(run: Run) -> Card | None:
    _, speeds = series(run.train, "tokens_per_second")
    _, mfu = series(run.train, "mfu")
    if not np.isfinite(speeds).any():
        return None
    note = "median" + (f" · {np.nanmedian(mfu):.1%} of the peak FLOP/s" if np.isfinite(mfu).any() else "")
    return "Tokens per second", f"{np.nanmedian(speeds):,.0f}", note


def _time(run: Run) -> Card | None:
    restarts = sum(row.get("what") == "resume" for row in run.events)
    note = f"in {restarts + 1} parts, the pauses left out" if restarts else "in one go"
    return ("Wall time", duration(run.seconds), note) if run.seconds else None


def _goodput(run: Run) -> Card | None:
    _, goodput = series(run.train, "goodput")
    if not len(goodput):
        return None
    _, energy = series(run.train, "energy_kwh")
    note = "of all time went into steps that count" + (f" · {energy[-1]:,.1f} kWh" if len(energy) else "")
    return "Goodput", f"{goodput[-1]:.1%}", note


def _device(run: Run) -> Card | None:
    kind, devices, processes = (run.facts.get(key) for key in ("device_kind", "num_devices", "num_processes"))
    if not kind:
        return None
    mesh = " × ".join(f"{axis} {size}" for axis, size in run.facts.get("mesh", {}).items())
    notes = [f"mesh: {mesh}"] if mesh else []
    notes += [f"{processes} processes"] if processes and processes > 1 else []
    return "Device" if devices == 1 else "Devices", f"{devices or ''} {kind}".strip(), " · ".join(notes)


def _curves(run: Run) -> str:
    drawn = charts(run)
    told = "Faint: as logged. Strong: running median." + (" Dashed upright: a restart." if run.resumed_at else "")
    if run.yardsticks:
        told += " The compressors had the whole validation text at once and none of the training text."
    body = f'<p class="note">{told}</p>{curves(drawn)}'
    return section("Curves", body if drawn else '<p class="note">Nothing is logged yet.</p>')


def _samples(run: Run) -> str:
    if not run.samples:
        return ""
    newest_first = [_sample(row, is_open=row is run.samples[-1]) for row in reversed(run.samples)]
    shown, older = newest_first[:_SAMPLES_SHOWN], newest_first[_SAMPLES_SHOWN:]
    earlier = folded(f"{len(older)} earlier samples", f'<div class="inside">{"".join(older)}</div>') if older else ""
    return section("Samples", "".join(shown) + earlier, "Newest first. The prompt is marked; the model wrote the rest.")


def _sample(row: Row, is_open: bool) -> str:
    prompt, text = str(row.get("prompt", "")), str(row.get("text", ""))
    preview = " ".join((prompt + text)[:200].split())
    return (
        f'<details class="card"{" open" if is_open else ""}>'
        f"<summary><b>step {row['step']:,}</b><code>{escaped(preview)}</code></summary>"
        f'<pre><span class="prompt">{escaped(prompt)}</span>{escaped(text)}</pre></details>'
    )


_KINDS = {
    "step": "steps that count",
    "input": "waiting for batches",
    "compile": "compiling",
    "validation": "validation and samples",
    "checkpoint": "writing checkpoints",
    "start": "before the first step",
    "lost": "steps lost by a kill or a rewind",
    "down": "between a process and the next",
}


def _books(run: Run) -> str:
    """Where the time went, as the last row of the log tells it."""
    last = next((row for row in reversed(run.train) if "seconds_step" in row), None)
    if last is None:
        return ""
    spent = {told: float(last.get(f"seconds_{kind}", 0.0)) for kind, told in _KINDS.items()}
    total = sum(spent.values()) or 1.0
    rows = [[told, f"{seconds:,.1f}", f"{seconds / total:.1%}"] for told, seconds in spent.items() if seconds]
    return section("Time", card(table(("What", "Seconds", "Share"), rows, numbers=(1, 2))))


def _profile(run: Run) -> str:
    """Where the time of the traced steps went, by part of the model."""
    profile = profile_of(run.folder / "profile")
    if profile is None:
        return ""
    rows = [
        [part.scope, f"{part.forward * 1e3:,.1f}", f"{part.backward * 1e3:,.1f}", f"{part.share:.1%}"]
        for part in profile.parts
    ]
    heads = ("Part", "Forward, ms a step", "Backward, ms a step", "Share")
    told = (
        f"Of {profile.steps} traced steps (train.profile_steps={escaped(str(run.config['train']['profile_steps']))}), "
        "added over the threads or devices that worked at the same time. What the compiler fused is counted where the "
        "fusion ends."
    )
    drawn = curves([draw_profile(profile)])
    return section("A step", card(table(heads, rows, numbers=(1, 2, 3))) + drawn, told)


def _corpus(run: Run) -> str:
    columns = ("documents", "bytes", "tokens", "sequences")
    rows = []
    for task, splits in run.facts.get("corpus", {}).get("tasks", {}).items():
        for split, counts in splits.items():
            size, tokens = counts.get("bytes"), counts.get("tokens")
            ratio = f"{size / tokens:.2f}" if size and tokens else ""
            rows.append([task, split, *(counts.get(column) for column in columns), ratio])
    if not rows:
        return ""
    heads = ("Task", "Split", "Documents", "Bytes", "Tokens", "Sequences", "Bytes per token")
    return section("Corpus", card(table(heads, rows, numbers=range(2, 7))))


def _parameters(run: Run) -> str:
    if not run.parameters:
        return ""
    rows = []
    for row in run.parameters:
        shape, std = " × ".join(str(size) for size in row.get("shape", ())), row.get("std")
        told_std = f"{std:.4g}" if is_number(std) else None
        rows.append([row.get("path"), shape, row.get("spec"), row.get("dtype"), told_std, row.get("count")])
    total = sum(row.get("count", 0) for row in run.parameters)
    heads = ("Path", "Shape", "Sharding", "Type", "Std at init", "Count")
    total_row = ["Total", None, None, None, None, total]
    return section("Parameters", card(table(heads, rows, numbers=(4, 5), total=total_row)))


def _config(run: Run) -> str:
    cards = []
    plain = {name: value for name, value in run.config.items() if not isinstance(value, dict)}
    sections = {name: value for name, value in run.config.items() if isinstance(value, dict)}
    for name, fields in {"experiment": plain, **sections}.items():
        rows = "".join(
            f"<tr><td>{escaped(key)}</td><td>{escaped(setting(value))}</td></tr>" for key, value in fields.items()
        )
        cards.append(f'<div class="card"><h3>{escaped(name)}</h3><table class="mono">{rows}</table></div>')
    return section("Config", f'<div class="grid config">{"".join(cards)}</div>')


def _events(run: Run) -> str:
    if not run.events:
        return ""
    rows = [
        [clock(row["time"]) if is_number(row.get("time")) else None, row["step"], row.get("what"), row.get("detail")]
        for row in reversed(run.events)
    ]
    events = table(("Time (UTC)", "Step", "What", "Detail"), rows, numbers=(1,), long=(3,))
    body = card(events) if len(rows) <= _EVENTS_SHOWN else folded(f"{len(rows)} events", events)
    return section("Events", body, "Newest first.")


def _footer(run: Run) -> str:
    versions = {"pathways_lm": "version", "jax": "jax", "flax": "flax", "Python": "python"}
    parts = [f"{name} {run.facts[key]}" for name, key in versions.items() if run.facts.get(key)]
    if run.facts.get("vocab_fingerprint"):
        parts.append(f"vocabulary {str(run.facts['vocab_fingerprint'])[:12]}")
    if run.unreadable:
        parts.append(f"{run.unreadable} unreadable lines left out, as a kill leaves them")
    return " · ".join(parts)
