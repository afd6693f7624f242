"""What would make a step fit that does not: single changes of its layout, by formulas."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from pathways_lm.config import Experiment
from pathways_lm.errors import ConfigError
from pathways_lm.mesh import AXES, CONTEXT, DATA, EXPERT, STAGE, TENSOR, axis_sizes
from pathways_lm.plan.analytic.plan import expected_memory, fitting_work
from pathways_lm.plan.choices import BY_TENSOR, REMAT, meshes, microbatch_counts
from pathways_lm.plan.layout import Layout, laid_out, layout_of, overrides
from pathways_lm.plan.machine import GIB, Machine
from pathways_lm.plan.memory import Memory

NUM_TOLD = 3


@dataclass(frozen=True)
class Remedy:
    """One change, and the memory of a device after it."""

    changes: tuple[str, ...]
    """For `--set`. An axis that grows takes its devices from the data axis."""
    peak: float


def remedies(experiment: Experiment, machine: Machine, already: Memory | None = None) -> list[Remedy]:
    """The changes that lower memory most, the best first: of each field or axis one, the smallest that makes it fit.

    Args:
      already: the memory as it is; a change is told where it is below that.
    """
    start = layout_of(experiment, axis_sizes(experiment.mesh, machine.num_devices))
    now = already or expected_memory(fitting_work(experiment, machine), machine)
    best: list[Remedy] = []
    for options in _changes(experiment, machine, start):
        found = [remedy for layout in options if (remedy := _remedy(experiment, machine, layout))]
        fitting = [each for each in found if each.peak <= now.capacity]
        if found:
            best.append(fitting[0] if fitting else min(found, key=lambda each: each.peak))
    best = [each for each in best if each.peak < now.peak]
    return sorted(best, key=lambda each: each.peak)[:NUM_TOLD]


def _remedy(experiment: Experiment, machine: Machine, layout: Layout) -> Remedy | None:
    try:
        work = fitting_work(laid_out(experiment, layout), machine)
    except ConfigError:
        return None
    return Remedy(tuple(overrides(experiment, layout)), expected_memory(work, machine).peak)


def _changes(experiment: Experiment, machine: Machine, start: Layout) -> Iterator[list[Layout]]:
    """Layouts that differ in one field or axis, those of each together, the smallest change first."""
    every = sorted(meshes(experiment, machine))
    for axis in (TENSOR, EXPERT, STAGE, CONTEXT):
        others = [each for each in AXES if each not in (DATA, axis)]
        grown = [replace(start, sizes=sizes) for sizes in every]
        grown = [each for each in grown if each[axis] > start[axis] and all(each[o] == start[o] for o in others)]
        yield sorted(grown, key=lambda each: each[axis])
    yield [replace(start, rules=rules) for rules in (*BY_TENSOR, "fsdp") if rules != start.rules]
    yield [replace(start, zero=zero) for zero in range(start.zero + 1, 4)]
    if start.remat in REMAT:
        yield [replace(start, remat=remat) for remat in REMAT[REMAT.index(start.remat) + 1 :]]
    counts = microbatch_counts(experiment, start)
    yield [replace(start, microbatches=count) for count in counts if count > start.microbatches]
    if start.precision == "fp32":
        yield [replace(start, precision="bf16")]


def told(found: list[Remedy], by_formulas: float) -> str:
    """The changes in one line."""
    if not found:
        return "no single change of the layout lowers that"
    changes = [f"{' '.join(f'--set {change}' for change in each.changes)} ({each.peak / GIB:.1f})" for each in found]
    return (
        f"what would help most, with GiB of a device by formulas, which say {by_formulas / GIB:.1f} now: "
        + "; ".join(changes)
        + "; --search tries changes together"
    )
