"""A plan in words, and as a page."""

from collections.abc import Callable, Sequence

from pathways_lm.plan.machine import GIB, MATRIX_EFFICIENCY
from pathways_lm.plan.plan import Plan
from pathways_lm.report.html import card, cards, document, escaped, section, table

_TRAFFIC = ("what", "axes", "devices", "times a step", "put in", "sent", "time", "not hidden")
_COLOURS = ("#0072b2", "#56b4e9", "#009e73", "#e69f00", "#d55e00", "#cc79a7")


def in_words(plan: Plan) -> str:
    """What the command prints."""
    memory, cost = plan.memory, plan.roofline
    lines = [
        f"{plan.name} on {plan.machine}: {_layout(plan)} ({_made(plan)})",
        f"memory of a device  {_gib(memory.peak)} of {_gib(memory.capacity)}: "
        + ", ".join(f"{name} {_gib(size)}" for name, size in _memory(plan)),
        f"a step              {cost.step_seconds:.3g} s: "
        + ", ".join(f"{name} {_seconds(time)}" for name, time in _times(plan)),
        f"                    MFU {plan.mfu:.1%}, HFU {plan.hfu:.1%}, {plan.tokens_per_second:,.0f} tokens/s"
        + (f", {plan.joules_per_token:.3g} J a token" if plan.joules_per_token else ""),
    ]
    if plan.attention:
        lines.append(plan.attention)
    if plan.run_cost is not None:
        lines.append(f"the run             {_cost(plan)}")
    rows = [_TRAFFIC, *(tuple(map(str, row)) for row in _traffic(plan))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_TRAFFIC))]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines + [f"note: {note}" for note in notes(plan)])


def notes(plan: Plan) -> list[str]:
    """What a reader should know before trusting the figures."""
    told = []
    if not plan.compiled:
        told.append("these figures are from formulas, not from a compiler: see docs/plans.md for how far off they were")
    if plan.bubble:
        told.append(f"stages idle for {plan.bubble:.1%} of their work, (p - 1) / (v m)")
    if plan.roofline.unknown_loops:
        told.append(f"{plan.roofline.unknown_loops} loops whose number of turns is not known are counted as one turn")
    return told


def as_page(plan: Plan) -> str:
    """The plan with its bars."""
    memory, cost = plan.memory, plan.roofline
    energy = f"{plan.joules_per_token:.3g} J a token" if plan.joules_per_token else ""
    head = cards(
        [
            ("Memory of a device", _gib(memory.peak), f"of {_gib(memory.capacity)}"),
            ("Step", f"{cost.step_seconds:.3g} s", f"{plan.tokens_per_step:,} tokens"),
            ("MFU", f"{plan.mfu:.1%}", f"with what is computed twice {plan.hfu:.1%}"),
            ("Speed", f"{plan.tokens_per_second:,.0f}", " · ".join(filter(None, ["tokens a second", energy]))),
        ]
    )
    free = [("free", max(0.0, memory.capacity - memory.peak))]
    numbers = (2, 3)
    if plan.run_cost is not None:
        head += f'<p class="note">The run: {escaped(_cost(plan))}.</p>'
    body = [
        head,
        section("Memory", card(_bar([*_memory(plan), *free], _gib)), "Of one device, at the step's fullest moment."),
        section("Time", card(_bar(_times(plan), _seconds)), _how()),
        section("Exchanges", card(table(_TRAFFIC, _traffic(plan), numbers)), "Of one device in a step."),
    ]
    footer = "; ".join(filter(None, [_made(plan), plan.attention, *notes(plan)]))
    body.append(f"<footer>{escaped(footer)}</footer>")
    return document(f"{plan.name} on {plan.machine}", plan.name, f"{plan.machine} · {_layout(plan)}", "".join(body))


def _made(plan: Plan) -> str:
    return f"{plan.compiler}, compiled in {plan.compile_seconds:.0f} s" if plan.compiled else plan.compiler


def _cost(plan: Plan) -> str:
    hours = plan.run_hours * plan.num_devices
    steps = f"{plan.num_steps:,} steps in {plan.run_hours:,.1f} hours"
    return f"{steps}, {hours:,.0f} device hours at {plan.price:g} each: {plan.run_cost:,.0f}"


def _how() -> str:
    return (
        f"Matrix products at {MATRIX_EFFICIENCY:.0%} of the peak, which large ones reach; what instructions wait for "
        "memory beyond that; and exchanges that no arithmetic hides, each on links it has for itself."
    )


def _layout(plan: Plan) -> str:
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items()) or "one device"
    return f"{plan.num_devices:,} devices, {mesh}"


def _memory(plan: Plan) -> list[tuple[str, float]]:
    memory = plan.memory
    return [
        ("parameters", memory.parameters),
        ("optimizer", memory.optimizer),
        ("batch", memory.batch),
        ("gradients", memory.gradients),
        *(memory.details or [("activations and work", memory.rest)]),
    ]


def _times(plan: Plan) -> list[tuple[str, float]]:
    """Seconds of a step, exchanges by the axes they lie along."""
    cost = plan.roofline
    parts = [("products", cost.matrix_seconds), ("memory", cost.memory_seconds)]
    by_axes: dict[str, float] = {}
    for row in cost.traffic:
        axes = _axes(row.axes)
        by_axes[axes] = by_axes.get(axes, 0.0) + row.exposed_seconds
    shown = {axes: seconds for axes, seconds in by_axes.items() if seconds > 1e-3 * cost.step_seconds}
    parts += [(f"exchanges over {axes}", seconds) for axes, seconds in shown.items()]
    return parts + ([("stages that wait", cost.bubble_seconds)] if cost.bubble_seconds else [])


def _axes(axes: Sequence[str]) -> str:
    return " and ".join(axes) or "one place"


def _traffic(plan: Plan) -> list[list[str]]:
    return [
        [
            row.kind,
            _axes(row.axes),
            f"{row.group:,}",
            f"{row.times:,.0f}",
            _size(row.operand_bytes),
            _size(row.sent_bytes),
            _seconds(row.seconds),
            _seconds(row.exposed_seconds),
        ]
        for row in plan.roofline.traffic
    ]


def _bar(parts: Sequence[tuple[str, float]], told: Callable[[float], str]) -> str:
    """Parts of a whole side by side, and below what they are."""
    total = sum(size for _, size in parts) or 1.0
    colours = ["var(--grid)" if name == "free" else _COLOURS[i % len(_COLOURS)] for i, (name, _) in enumerate(parts)]
    strips = "".join(
        f'<div style="width:{100 * size / total:.3f}%;background:{colour}" title="{escaped(name)}"></div>'
        for (name, size), colour in zip(parts, colours, strict=True)
    )
    legend = "".join(
        f'<span><i style="background:{colour}"></i>{escaped(name)} <b>{escaped(told(size))}</b></span>'
        for (name, size), colour in zip(parts, colours, strict=True)
    )
    return f'<div class="inside"><div class="bar">{strips}</div><div class="key">{legend}</div></div>'


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"


def _seconds(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs" if seconds else "0"


def _size(size: float) -> str:
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size:.0f} B"
