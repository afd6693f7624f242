"""Layouts that a machine offers for an experiment."""

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

from pathways_lm.config import Experiment, ModelConfig
from pathways_lm.errors import ConfigError
from pathways_lm.mesh import AXES, CONTEXT, DATA, EXPERT, POD, STAGE, TENSOR
from pathways_lm.plan.layout import Layout, laid_out, layout_of
from pathways_lm.plan.machine import Machine

# Sequences shorter than this are not cut.
LONG = 8192
_WIDEST = 32
"""Devices of a torus that share a product."""
REMAT = ("none", "attention", "block")
BY_TENSOR = ("palm_2d", "sequence_parallel", "tensor_parallel")
DISPATCHES = ("all_to_all", "einsum")


def layouts(experiment: Experiment, machine: Machine) -> Iterator[Layout]:
    """Every layout on all of the machine's devices, some of which the model or the batch may not divide into.

    The data axis fills up. Of layouts that come to the same, one: along a tensor axis of one all rules are alike.
    """
    for sizes in meshes(experiment, machine):
        on_mesh = layout_of(experiment, sizes)
        rules = BY_TENSOR if on_mesh[TENSOR] > 1 else ("fsdp",)
        # Parameters that are whole everywhere are so in every pod.
        stages_of_zero = range(1 if on_mesh[POD] > machine.pods else 0, 4)
        for preset, zero, remat in product(rules, stages_of_zero, REMAT):
            for dispatch in DISPATCHES if on_mesh.dispatch else ("",):
                for microbatches in microbatch_counts(experiment, on_mesh):
                    layout = replace(
                        on_mesh, rules=preset, zero=zero, remat=remat, dispatch=dispatch, microbatches=microbatches
                    )
                    yield from _schedules(experiment, layout)


def meshes(experiment: Experiment, machine: Machine) -> Iterator[tuple[int, ...]]:
    """Sizes of the axes."""
    for pod, tensor, expert, stage, context in product(
        pod_counts(machine),
        tensor_sizes(experiment.model, machine),
        expert_sizes(experiment.model, machine),
        stage_counts(experiment.model, machine),
        context_sizes(experiment, machine),
    ):
        others = {POD: pod, TENSOR: tensor, EXPERT: expert, STAGE: stage, CONTEXT: context}
        data, rest = divmod(machine.num_devices, math.prod(others.values()))
        if not rest and data:
            others[DATA] = data
            yield tuple(others[axis] for axis in AXES)


def pod_counts(machine: Machine) -> list[int]:
    """A pod for each slice of a TPU. Islands of GPUs may be pods, each with all parameters, or one cluster."""
    return [machine.pods] if machine.chip.torus_rank else sorted({1, machine.shape[0]})


def tensor_sizes(model: ModelConfig, machine: Machine) -> list[int]:
    """Within an island of GPUs, or a small part of a torus."""
    widest = min(_WIDEST, math.prod(machine.shape)) if machine.chip.torus_rank else machine.shape[1]
    cut = math.gcd(model.num_heads, model.mlp_dim)
    return [size for size in _divisors(machine.num_devices) if size <= widest and cut % size == 0]


def expert_sizes(model: ModelConfig, machine: Machine) -> list[int]:
    """1 without experts."""
    return _divisors(math.gcd(model.moe.num_experts, machine.num_devices)) if model.moe.num_experts else [1]


def stage_counts(model: ModelConfig, machine: Machine) -> list[int]:
    """Of as many layers each. None with experts, whose gradients stages would add over devices at every tick."""
    if model.moe.num_experts:
        return [1]
    return [count for count in _divisors(model.num_layers) if machine.num_devices % count == 0]


def context_sizes(experiment: Experiment, machine: Machine) -> list[int]:
    """Of long sequences."""
    if experiment.data.sequence_length < LONG:
        return [1]
    return [size for size in (1, 2, 4, 8, 16) if machine.num_devices % size == 0]


def microbatch_counts(experiment: Experiment, layout: Layout) -> list[int]:
    """Powers of two, down to a sequence a device."""
    most = experiment.data.batch_size // max(1, layout.num_devices // math.prod(_shared(layout)))
    return [count for count in (2**power for power in range(12)) if count <= most]


def _shared(layout: Layout) -> tuple[int, ...]:
    """Axes that do not cut the batch."""
    return layout[TENSOR], layout[CONTEXT], layout[STAGE]


def _schedules(experiment: Experiment, layout: Layout) -> Iterator[Layout]:
    attentions = ("gather", "ring") if layout[CONTEXT] > 1 else (layout.attention,)
    if layout[STAGE] == 1:
        yield from (replace(layout, attention=attention, chunks=1) for attention in attentions)
        return
    # Stages compute themselves again, so that a turn's remat matters little, and blocks would be computed twice.
    # Parameters gathered in each layer would be so at every tick, and gradients cut; the optimizer's state is cut for
    # nothing. 1F1B needs no more memory than GPipe, and as much time.
    if layout.remat != "none" or layout.zero != 1 or layout.microbatches < layout[STAGE]:
        return
    turns = experiment.model.num_layers // layout[STAGE]
    for chunks, attention in product((1, 2, 4), attentions):
        if turns % chunks == 0 and (chunks == 1 or layout.microbatches % layout[STAGE] == 0):
            yield replace(layout, schedule="1f1b", chunks=chunks, attention=attention)


def _divisors(of: int) -> list[int]:
    return [size for size in range(1, of + 1) if of % size == 0]


def fitting(experiment: Experiment, layout: Layout) -> Experiment | None:
    """The experiment in this layout, or None where its parts do not go together."""
    try:
        return laid_out(experiment, layout)
    except ConfigError:
        return None
