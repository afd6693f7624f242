"""The layout that suits a machine: all tried by formulas, the best few by its compiler."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax

from pathways_lm.config import Experiment
from pathways_lm.errors import ConfigError
from pathways_lm.plan.analytic.plan import expected_memory, expected_roofline, fitting_work
from pathways_lm.plan.choices import fitting, layouts
from pathways_lm.plan.layout import Layout, in_words, overrides
from pathways_lm.plan.machine import Machine
from pathways_lm.plan.plan import DoesNotFitError, Plan, make_plan, too_large

_LIKELY = 0.95
"""Of the memory that a candidate may need by formulas, which are a few hundredths off, before the compiler is asked."""
_NEAR = 1.1
"""Times the fastest candidate: as far off as formulas may be."""
_PATIENCE = 300.0
"""Seconds after which no compile should end, if it takes as long as those before; the first is always made."""


@dataclass(frozen=True)
class Candidate:
    """A layout that a device has room for, by formulas."""

    layout: Layout
    changes: tuple[str, ...]
    """For `--set`."""
    peak: float
    """Bytes of a device."""
    step_seconds: float

    @property
    def words(self) -> str:
        """The layout in words."""
        return in_words(self.layout)


@dataclass(frozen=True)
class Tried:
    """A candidate after the compiler."""

    candidate: Candidate
    plan: Plan | None
    refusal: str = ""
    """What the compiler said instead."""

    @property
    def step_seconds(self) -> float:
        """Infinite where there is no plan that fits."""
        return float("inf") if self.plan is None else self.plan.roofline.step_seconds


@dataclass(frozen=True)
class Found:
    """What a search came to."""

    name: str
    machine: str
    capacity: float
    num_layouts: int
    """That the model and the batch divide into."""
    candidates: tuple[Candidate, ...]
    """Those that fit, the fastest first."""
    tried: tuple[Tried, ...]
    seconds: float

    @property
    def frontier(self) -> tuple[Candidate, ...]:
        """Those than which no other is faster with as little memory, the fastest first."""
        return pareto(self.candidates)

    @property
    def best(self) -> Candidate | None:
        """The fastest by the compiler, or where it was not asked, by formulas."""
        compiled = [each for each in self.tried if each.plan is not None]
        if compiled:
            return min(compiled, key=lambda each: each.step_seconds).candidate
        return self.candidates[0] if self.candidates and not self.tried else None

    def as_json(self) -> dict[str, Any]:
        """All of it, candidates off the frontier left out."""
        return {
            "name": self.name,
            "machine": self.machine,
            "seconds": self.seconds,
            "layouts": self.num_layouts,
            "fit": len(self.candidates),
            "best": list(self.best.changes) if self.best else None,
            "frontier": [_as_json(each) for each in self.frontier],
            "compiled": [
                _as_json(each.candidate) | {"plan": each.plan.as_json() if each.plan else None, "refusal": each.refusal}
                for each in self.tried
            ],
        }


def _as_json(candidate: Candidate) -> dict[str, Any]:
    return {
        "changes": list(candidate.changes),
        "layout": candidate.words,
        "peak_bytes": candidate.peak,
        "step_seconds": candidate.step_seconds,
    }


def search(
    experiment: Experiment, machine: Machine, num_compiled: int, progress: Callable[[str], None] = lambda line: None
) -> Found:
    """Ranks every layout by formulas and compiles the fastest.

    Args:
      num_compiled: how many are compiled, besides those that turn out not to fit or that the compiler refuses, and as
        long as there is time; 0 for none.
      progress: told what is going on, a line at a time.
    """
    began = time.perf_counter()
    num_layouts, candidates = ranked(experiment, machine)
    progress(f"{num_layouts:,} layouts in {time.perf_counter() - began:.0f} s, {len(candidates):,} fit by formulas")
    tried = compiled(experiment, machine, likely(candidates, machine), num_compiled, began + _PATIENCE, progress)
    seconds = time.perf_counter() - began
    return Found(
        experiment.name, machine.name, machine.chip.memory_bytes, num_layouts, tuple(candidates), tuple(tried), seconds
    )


def ranked(experiment: Experiment, machine: Machine) -> tuple[int, list[Candidate]]:
    """How many layouts there are, and those that fit, the fastest first."""
    count, found = 0, []
    for layout in layouts(experiment, machine):
        changed = fitting(experiment, layout)
        if changed is None:
            continue
        try:
            work = fitting_work(changed, machine)
        except ConfigError:
            continue
        count += 1
        memory = expected_memory(work, machine)
        if memory.fits:
            cost = expected_roofline(work, machine)
            changes = tuple(overrides(experiment, layout))
            found.append(Candidate(layout, changes, memory.peak, cost.step_seconds))
    # Of equally fast ones, that which needs less.
    return count, sorted(found, key=lambda each: (each.step_seconds, each.peak))


def pareto(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """Those than which none is faster with as little memory, from candidates that are sorted by speed."""
    kept: list[Candidate] = []
    for each in candidates:
        if not kept or each.peak < kept[-1].peak:
            kept.append(each)
    return tuple(kept)


def likely(candidates: Iterable[Candidate], machine: Machine) -> list[Candidate]:
    """Candidates in the order in which they are compiled: those that should fit, and of those about as fast as the
    fastest first one of each mesh and `remat`.

    Compiling a few should tell of several ideas, not of one with more or fewer microbatches.
    """
    seen: set[tuple[Any, ...]] = set()
    firsts: list[Candidate] = []
    others: list[Candidate] = []
    for each in candidates:
        if each.peak > _LIKELY * machine.chip.memory_bytes:
            continue
        layout = each.layout
        kind = (layout.sizes, layout.remat)
        near = not firsts or each.step_seconds <= _NEAR * firsts[0].step_seconds
        (firsts if near and kind not in seen else others).append(each)
        seen.add(kind)
    return firsts + others


def compiled(
    experiment: Experiment,
    machine: Machine,
    candidates: list[Candidate],
    wanted: int,
    until: float,
    progress: Callable[[str], None],
) -> list[Tried]:
    """The first so many that the compiler takes and that fit; twice as many are tried at most."""
    tried: list[Tried] = []
    longest = 0.0
    for candidate in candidates[: 2 * wanted]:
        began = time.perf_counter()
        if sum(each.plan is not None for each in tried) == wanted:
            break
        if tried and began + longest > until:
            progress(f"no time for more: a compile takes {longest:.0f} s")
            break
        progress(f"compiling {candidate.words}: {candidate.step_seconds:.3g} s by formulas")
        tried.append(_compile(experiment, machine, candidate))
        longest = max(longest, time.perf_counter() - began)
        last = tried[-1]
        progress(f"  {last.refusal or f'{last.step_seconds:.3g} s by the compiler'}")
    return tried


def _compile(experiment: Experiment, machine: Machine, candidate: Candidate) -> Tried:
    changed = fitting(experiment, candidate.layout)
    assert changed is not None
    try:
        plan = make_plan(changed, machine)
    except (ConfigError, DoesNotFitError) as error:
        return Tried(candidate, None, str(error))
    finally:
        # Programs and traces of a layout are of no use to the next.
        jax.clear_caches()
    if not plan.memory.fits:
        return Tried(candidate, None, str(too_large(plan)))
    return Tried(candidate, plan)
