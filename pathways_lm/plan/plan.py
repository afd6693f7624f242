"""A training step on a machine that is not here: compiled by its own compiler, and read."""

import math
import re
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax

from pathways_lm.config import Experiment
from pathways_lm.data.objectives import abstract_batch, check_lengths
from pathways_lm.errors import ConfigError
from pathways_lm.mesh import make_mesh
from pathways_lm.models.attentions import attentions, told
from pathways_lm.models.model import Model
from pathways_lm.plan.compilers import compiler_name, described_devices, without_a_device
from pathways_lm.plan.hlo import parse
from pathways_lm.plan.layout import layout_of
from pathways_lm.plan.machine import GIB, Machine
from pathways_lm.plan.memory import Memory
from pathways_lm.plan.network import Network, places
from pathways_lm.plan.program_cost import segments
from pathways_lm.plan.roofline import Roofline, roofline
from pathways_lm.sharding import check_fit, rules_of, shard_bytes
from pathways_lm.train.flops import flops_per_token, read_tokens
from pathways_lm.train.optimizer import make_optimizer
from pathways_lm.train.precision import POLICIES
from pathways_lm.train.schedule import make_schedule
from pathways_lm.train.state import TrainState, abstract_state
from pathways_lm.train.step import compile_step, make_step


@dataclass(frozen=True)
class Plan:
    """What a step needs and how long it should take."""

    name: str
    machine: str
    num_devices: int
    mesh: dict[str, int]
    compiler: str
    compile_seconds: float
    tokens_per_step: int
    model_flops: float
    """Of a device, by PaLM's appendix B: nothing that is computed twice."""
    memory: Memory
    roofline: Roofline
    peak_flops: float
    watts: float | None
    num_steps: int
    """Of the whole run."""
    bubble: float = 0.0
    """Idle time of a pipeline's stages as a share of their work."""
    price: float | None = None
    """Of a device and hour, in whatever currency it was given."""
    attention: str = ""
    """Which is chosen, and why."""

    @property
    def compiled(self) -> bool:
        """Whether a compiler made the step, and not formulas."""
        return self.compile_seconds > 0

    @property
    def tokens_per_second(self) -> float:
        return self.tokens_per_step / self.roofline.step_seconds

    @property
    def mfu(self) -> float:
        """Model FLOPs utilization."""
        return self.model_flops / self.roofline.step_seconds / self.peak_flops

    @property
    def hfu(self) -> float:
        """Hardware FLOPs utilization, with what is computed twice."""
        return self.roofline.flops / self.roofline.step_seconds / self.peak_flops

    @property
    def joules_per_token(self) -> float | None:
        """Of the devices alone, under load all the time."""
        return None if self.watts is None else self.watts * self.num_devices / self.tokens_per_second

    @property
    def run_hours(self) -> float:
        """Of all steps of the run, without evaluation, checkpoints and failures."""
        return self.num_steps * self.roofline.step_seconds / 3600

    @property
    def run_cost(self) -> float | None:
        """Of all devices for all steps of the run."""
        return None if self.price is None else self.run_hours * self.num_devices * self.price

    def as_json(self) -> dict[str, Any]:
        """Everything, with what follows from it."""
        told = asdict(self)
        told["memory"] |= {"peak": self.memory.peak, "fits": self.memory.fits}
        told["roofline"]["step_seconds"] = self.roofline.step_seconds
        derived = ("tokens_per_second", "mfu", "hfu", "joules_per_token", "run_hours", "run_cost")
        return told | {name: getattr(self, name) for name in derived}


class DoesNotFitError(Exception):
    """The step needs more memory than a device has. The message says by how much."""


def too_large(plan: Plan) -> DoesNotFitError:
    """What is said of a plan that does not fit."""
    return _too_large(f"'{plan.name}' on {plan.machine}", plan.memory.peak / GIB, plan.memory.capacity / GIB)


def _too_large(where: str, needed: float, available: float) -> DoesNotFitError:
    return DoesNotFitError(
        f"{where} does not fit: a device would need {needed:.1f} GiB and has {available:.1f}, "
        f"{needed - available:.1f} too little"
    )


def make_plan(experiment: Experiment, machine: Machine, price: float | None = None) -> Plan:
    """Compiles the experiment's training step for the machine and reads what it costs.

    Args:
      price: of a device and hour.

    Raises ConfigError where the mesh does not fit the machine or the model, or the compiler refuses the layout;
    DoesNotFitError where it runs out of memory.
    """
    mesh = make_mesh(experiment.mesh, described_devices(machine))
    rules = rules_of(experiment.mesh, mesh)
    check_fit(experiment, rules)
    check_lengths(experiment.data, rules)
    model = Model(experiment.model, rules, POLICIES[experiment.train.precision].stored)
    schedule = make_schedule(experiment.optimizer, experiment.train.num_steps, experiment.tokens_per_step)
    optimizer = make_optimizer(experiment.optimizer, schedule, model)
    batch = abstract_batch(experiment.data)
    half = POLICIES[experiment.train.precision].compute.itemsize == 2
    attention = told(attentions(model, batch, experiment.train.microbatches, half))
    began = time.perf_counter()
    try:
        step = make_step(model, optimizer, schedule, experiment.train)
        compiled = compile_step(step, model, optimizer, batch, without_a_device(machine))
    except jax.errors.JaxRuntimeError as error:
        raise refusal(experiment.name, machine, str(error)) from error
    compile_seconds = time.perf_counter() - began
    program = parse(compiled.as_text())
    cost = roofline(segments(program, dict(mesh.shape)), Network(machine, places(machine, mesh.devices)))
    # In a pipeline's bubble stages compute on zeros: their time counts, their arithmetic is no one's.
    bubble = layout_of(experiment, tuple(mesh.shape.values())).bubble
    cost = replace(cost, flops=cost.flops / (1 + bubble))
    tokens = sum(math.prod(leaf.shape) for leaf in read_tokens(batch))
    return Plan(
        name=experiment.name,
        machine=machine.name,
        num_devices=machine.num_devices,
        mesh={axis: size for axis, size in mesh.shape.items() if size > 1},
        compiler=compiler_name(machine),
        compile_seconds=compile_seconds,
        tokens_per_step=tokens,
        model_flops=flops_per_token(model, batch) * tokens / machine.num_devices,
        memory=_memory(abstract_state(model, optimizer), rules.offload, compiled.memory_analysis(), machine),
        roofline=cost,
        peak_flops=machine.chip.flops,
        watts=machine.chip.watts,
        num_steps=experiment.train.num_steps,
        bubble=bubble,
        price=price,
        attention=attention,
    )


def _memory(state: TrainState, offload: bool, analysis: Any, machine: Machine) -> Memory:
    parameters, optimizer = shard_bytes(state.params), 0.0 if offload else shard_bytes(state.optimizer)
    # What lies in the host's memory is nobody's here, but the compiler's peak has it.
    in_host = analysis.host_argument_size_in_bytes + analysis.host_temp_size_in_bytes
    arguments = analysis.argument_size_in_bytes
    # Arguments and temporaries together overcount where the compiler reuses the old state's memory.
    together = arguments + analysis.temp_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    peak = min(analysis.peak_memory_in_bytes - in_host if analysis.peak_memory_in_bytes else together, together)
    batch = max(0.0, arguments - parameters - optimizer)
    gradients = min(parameters, max(0.0, peak - arguments))
    rest = max(0.0, peak - parameters - optimizer - batch - gradients)
    return Memory(parameters, optimizer, batch, gradients, rest, machine.chip.memory_bytes)


def refusal(name: str, machine: Machine, said: str) -> Exception:
    """What a compiler's error becomes."""
    first = said.strip().splitlines()[0]
    where = f"'{name}' on {machine.name}"
    if "RESOURCE_EXHAUSTED" not in first:
        return ConfigError(f"{compiler_name(machine)} refuses {where}: {first}")
    units = {"G": 1.0, "M": 1 / 1024}
    amounts = [float(number) * units[unit] for number, unit in re.findall(r"([\d.]+)([GM])\b", first)]
    if len(amounts) < 2:
        return DoesNotFitError(f"{where} does not fit: {first}")
    return _too_large(where, max(amounts), min(amounts))
