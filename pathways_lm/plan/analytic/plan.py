"""A plan without a compiler: the same figures from abstract evaluation and formulas."""

import math

from pathways_lm.config import Experiment
from pathways_lm.data.objectives import abstract_batch
from pathways_lm.mesh import AXES, abstract_mesh
from pathways_lm.models.attentions import told
from pathways_lm.plan.analytic import arithmetic
from pathways_lm.plan.analytic.arithmetic import check_groups
from pathways_lm.plan.analytic.exchanges import Exchanges
from pathways_lm.plan.analytic.memory import kept_of_turn, memory_of
from pathways_lm.plan.analytic.parameters import Cuts, neutral_model
from pathways_lm.plan.analytic.work import Work, work_of
from pathways_lm.plan.layout import layout_of
from pathways_lm.plan.machine import Machine
from pathways_lm.plan.memory import Memory
from pathways_lm.plan.network import imagined_network
from pathways_lm.plan.plan import Plan
from pathways_lm.plan.program_arithmetic import Arithmetic
from pathways_lm.plan.program_cost import Segment
from pathways_lm.plan.roofline import Roofline, roofline
from pathways_lm.sharding import check_fit, rules_of
from pathways_lm.train.flops import flops_per_token, read_tokens

COMPILER = "formulas, no compiler"


def analytic_plan(experiment: Experiment, machine: Machine, price: float | None = None) -> Plan:
    """The experiment's training step on the machine by formulas, in milliseconds and on any computer.

    Raises ConfigError where the mesh does not fit the machine or the model.
    """
    work = fitting_work(experiment, machine)
    batch = abstract_batch(experiment.data)
    tokens = sum(math.prod(leaf.shape) for leaf in read_tokens(batch))
    return Plan(
        name=experiment.name,
        machine=machine.name,
        num_devices=machine.num_devices,
        mesh={axis: size for axis, size in work.cuts.mesh.items() if size > 1},
        compiler=COMPILER,
        compile_seconds=0.0,
        tokens_per_step=tokens,
        model_flops=flops_per_token(neutral_model(experiment.model), batch) * tokens / machine.num_devices,
        memory=expected_memory(work, machine),
        roofline=expected_roofline(work, machine),
        peak_flops=machine.chip.flops,
        watts=machine.chip.watts,
        num_steps=experiment.train.num_steps,
        bubble=layout_of(experiment, tuple(work.cuts.mesh.values())).bubble,
        price=price,
        attention=told(dict(work.attentions)),
    )


def fitting_work(experiment: Experiment, machine: Machine) -> Work:
    """What a device has to do. Raises ConfigError where the mesh does not fit the machine, the model or the batch."""
    mesh = abstract_mesh(experiment.mesh, machine.num_devices)
    rules = rules_of(experiment.mesh, mesh)
    check_fit(experiment, rules)
    work = work_of(experiment, Cuts(rules), fused=bool(machine.chip.torus_rank))
    if experiment.model.moe.num_experts:
        for tower in work.towers:
            check_groups(work, tower)
    return work


def expected_memory(work: Work, machine: Machine) -> Memory:
    """What lies on a device."""
    return memory_of(work, machine.chip.memory_bytes)


def expected_roofline(work: Work, machine: Machine) -> Roofline:
    """How long a step takes."""
    sizes = tuple(work.cuts.mesh[axis] for axis in AXES)
    bubble = layout_of(work.experiment, sizes).bubble
    return roofline(segments(work, not work.fused), imagined_network(machine, sizes), bubble)


def segments(work: Work, started: bool) -> list[Segment]:
    """The step, loops apart.

    Args:
      started: whether the machine's compiler starts exchanges beside arithmetic.
    """
    exchanges, m = Exchanges(work, started), work.microbatches
    staged = work.stages > 1
    found = []
    for tower in work.towers:
        turns = float(m * tower.repeats)
        kept = kept_of_turn(work, tower)
        # Put into the stack of all turns, from where the backward pass takes it.
        ahead = [*arithmetic.forward(work, tower), Arithmetic(0.0, 2 * kept, "kept")]
        sent = exchanges.forward(tower)
        ahead.append(Arithmetic(0.0, exchanges.turned(tower, sent), "turned"))
        found.append(Segment(f"{tower.name} forward", turns, ahead, sent, staged=staged))
        back = [*arithmetic.recomputed(work, tower), *arithmetic.backward(work, tower), Arithmetic(0.0, kept, "kept")]
        sent = [*exchanges.recomputed(tower), *exchanges.backward(tower)]
        back.append(Arithmetic(0.0, exchanges.turned(tower, sent), "turned"))
        found.append(Segment(f"{tower.name} backward", turns, back, sent, staged=staged))
    ends = arithmetic.ends(work)
    ends += arithmetic.gradients(work)
    found.append(Segment("embedding and logits", float(m), ends, exchanges.microbatch()))
    if staged:
        found.append(Segment("to the next stage", float(m * work.chunks), [], exchanges.tick(), staged=True))
    found.append(Segment("update", 1.0, arithmetic.update(work), exchanges.once()))
    return found
