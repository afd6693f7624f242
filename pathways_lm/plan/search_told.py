"""What a search came to, in words and as a page."""

from pathways_lm.plan.machine import GIB
from pathways_lm.plan.search import Candidate, Found, Tried
from pathways_lm.report.frontier import frontier_chart
from pathways_lm.report.html import card, cards, document, escaped, section, table

_HEADS = ("layout", "GiB", "step", "tried")
_LINES = 12


def in_words(found: Found) -> str:
    """What the command prints."""
    told = [
        f"{found.name} on {found.machine}: {found.num_layouts:,} layouts, {len(found.candidates):,} fit "
        f"({found.seconds:.0f} s)"
    ]
    if not found.candidates:
        return f"{told[0]}; none fits the {found.capacity / GIB:.1f} GiB of a device"
    rows = [_HEADS, *_rows(found)[:_LINES]]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADS))]
    told += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    hidden = len(_rows(found)) - _LINES
    if hidden > 0:
        told.append(f"and {hidden} more on the frontier of memory against speed, slower with less memory")
    if found.best is None:
        told.append("the compiler took none of those tried")
    else:
        told.append(f"best: {found.best.words}")
    return "\n".join(told)


def as_page(found: Found) -> str:
    """The frontier as a picture, and what was tried."""
    best = found.best
    assert best is not None
    compiled = {id(each.candidate): each for each in found.tried}
    plan = compiled[id(best)].plan if id(best) in compiled else None
    seconds = plan.roofline.step_seconds if plan else best.step_seconds
    peak = plan.memory.peak if plan else best.peak
    head = cards(
        [
            ("Layouts", f"{found.num_layouts:,}", f"{len(found.candidates):,} fit"),
            ("Step of the best", f"{seconds:.3g} s", plan.compiler if plan else "by formulas"),
            ("Memory of a device", f"{peak / GIB:.1f} GiB", f"of {found.capacity / GIB:.1f} GiB"),
            ("Search", f"{found.seconds:.0f} s", f"{len(found.tried)} compiled"),
        ]
    )
    picture = frontier_chart(
        [_point(each) for each in found.candidates],
        [_point(each) for each in found.frontier],
        [_compiled_point(each) for each in found.tried if each.plan],
        found.capacity / GIB,
    )
    changes = "\n".join(f"--set {change}" for change in best.changes) or "the config as it is"
    body = [
        head,
        section("Memory against speed", card(f'<div class="inside">{picture}</div>'), "Of every layout that fits."),
        section("The best", card(f"<pre>{escaped(changes)}</pre>"), escaped(best.words)),
        section("Frontier", card(table(_HEADS, [list(row) for row in _rows(found)], (1, 2), (0, 3)))),
    ]
    subtitle = f"{found.machine} · {found.num_layouts:,} layouts"
    return document(f"{found.name} on {found.machine}: layouts", found.name, subtitle, "".join(body))


def _rows(found: Found) -> list[tuple[str, str, str, str]]:
    """What was compiled, the fastest first, then the rest of the frontier."""
    compiled = {each.candidate: each for each in found.tried}
    done = sorted(found.tried, key=lambda each: each.step_seconds)
    rest = [each for each in found.frontier if each not in compiled]
    return [_row(each.candidate, _said(each)) for each in done] + [_row(each, "") for each in rest]


def _row(candidate: Candidate, said: str) -> tuple[str, str, str, str]:
    return candidate.words, f"{candidate.peak / GIB:.1f}", f"{candidate.step_seconds:.3g} s", said


def _said(tried: Tried) -> str:
    if tried.plan is None:
        return tried.refusal
    return f"{tried.step_seconds:.3g} s, {tried.plan.memory.peak / GIB:.1f} GiB, MFU {tried.plan.mfu:.1%}"


def _point(candidate: Candidate) -> tuple[float, float]:
    return candidate.peak / GIB, candidate.step_seconds


def _compiled_point(tried: Tried) -> tuple[float, float]:
    assert tried.plan is not None
    return tried.plan.memory.peak / GIB, tried.step_seconds
