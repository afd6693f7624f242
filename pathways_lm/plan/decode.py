"""A decoding step on a machine that is not here: one more token for every sequence of a batch."""

import re
import time
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import reshard

from pathways_lm.compiler import compiler_options
from pathways_lm.config import Experiment
from pathways_lm.decode.cache import Cache
from pathways_lm.decode.forward import Forward, Weights, one_by_one, stacked_bytes
from pathways_lm.errors import ConfigError
from pathways_lm.mesh import make_mesh
from pathways_lm.models.model import Model
from pathways_lm.plan.compilers import compiler_name, described_devices, without_a_device
from pathways_lm.plan.hlo import parse
from pathways_lm.plan.machine import GIB, Machine
from pathways_lm.plan.network import Network, places
from pathways_lm.plan.plan import refusal
from pathways_lm.plan.program_cost import segments
from pathways_lm.plan.roofline import Roofline, roofline
from pathways_lm.sharding import check_fit, rules_of, shard_bytes, whole_sequences
from pathways_lm.train.precision import POLICIES


@dataclass(frozen=True)
class DecodePlan:
    """What a step needs, and how long it should take."""

    name: str
    machine: str
    num_devices: int
    mesh: dict[str, int]
    compiler: str
    compile_seconds: float
    rows: int
    """Sequences that go on together, of all devices."""
    slots: int
    """Tokens that the cache has room for, of each sequence."""
    parameters: float
    """Bytes of a device, in the type of the arithmetic."""
    cache: float
    peak: float
    capacity: float
    bandwidth: float
    """Bytes a second of a device's memory."""
    roofline: Roofline
    gathers: bool = False
    """Whether ZeRO cuts the parameters, so that every token gathers them."""

    @property
    def least_seconds(self) -> float:
        """To read what a device has of parameters and cache once."""
        return (self.parameters + self.cache) / self.bandwidth

    @property
    def fits(self) -> bool:
        """Whether a device has the memory."""
        return self.peak <= self.capacity

    def as_json(self) -> dict[str, Any]:
        """Everything, with what follows from it."""
        derived = {"least_seconds": self.least_seconds, "step_seconds": self.roofline.step_seconds, "fits": self.fits}
        return asdict(self) | derived


def parse_decode(text: str) -> tuple[int, int]:
    """Rows and slots from `64x2048`."""
    written = re.fullmatch(r"(\d+)x(\d+)", text)
    if written is None or not int(written[1]) or not int(written[2]):
        raise ConfigError(f"--decode '{text}' is not sequences x tokens of each, like 64x2048")
    return int(written[1]), int(written[2])


def make_decode_plan(experiment: Experiment, machine: Machine, rows: int, slots: int) -> DecodePlan:
    """Compiles a greedy step of `pathways_lm.decode` for the machine, with parameters in the type of the arithmetic.

    Raises ConfigError where the mesh does not fit, or the model is no decoder; DoesNotFitError where the compiler runs
    out of memory.
    """
    if experiment.model.shape != "decoder":
        raise ConfigError(f"--decode plans model.shape='decoder', not {experiment.model.shape!r}")
    mesh = make_mesh(experiment.mesh, described_devices(machine))
    rules = whole_sequences(rules_of(experiment.mesh, mesh))
    check_fit(experiment, rules)
    if rows % rules.parts("batch"):
        raise ConfigError(
            f"--decode: {rows} sequences are not divisible by the {rules.parts('batch')} parts of a batch"
        )
    dtype = POLICIES[experiment.train.precision].compute
    model = Model(experiment.model, rules, dtype)
    listed = one_by_one(model, machine.chip.memory_bytes)
    forward = Forward(model, dtype, listed)

    def step(weights: Weights, token_B1: Array, at_B1: Array, cache: Cache) -> tuple[Array, Cache]:
        x_BLD, cache = forward.extend(weights, token_B1, at_B1, cache)
        logits_BLV = reshard(forward.logits(weights, x_BLD), rules("batch", None, None)).astype(jnp.float32)
        return jnp.argmax(logits_BLV, axis=-1).astype(jnp.int32), cache

    placed = forward.caches.shardings(False)
    shapes = jax.eval_shape(lambda: forward.caches.empty(rows, slots))
    cache = jax.tree.map(lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), shapes, placed)
    column = jax.ShapeDtypeStruct((rows, 1), jnp.int32, sharding=rules("batch", None))
    began = time.perf_counter()
    try:
        jitted = jax.jit(step, donate_argnums=3, out_shardings=(rules("batch", None), placed))
        lowered = jitted.lower(jax.eval_shape(forward.weights, model.abstract), column, column, cache)
        options = compiler_options(mesh, model.config.matmuls, decodes=True)
        compiled: Any = lowered.compile({**options, **without_a_device(machine)})
    except jax.errors.JaxRuntimeError as error:
        raise refusal(experiment.name, machine, str(error)) from error
    seconds = time.perf_counter() - began
    analysis = compiled.memory_analysis()
    together = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes
    stack = stacked_bytes(model) if listed else 0.0
    program = segments(parse(compiled.as_text()), dict(mesh.shape))
    return DecodePlan(
        name=experiment.name,
        machine=machine.name,
        num_devices=machine.num_devices,
        mesh={axis: size for axis, size in mesh.shape.items() if size > 1},
        compiler=compiler_name(machine),
        compile_seconds=seconds,
        rows=rows,
        slots=slots,
        parameters=shard_bytes(model.abstract),
        cache=shard_bytes(cache),
        peak=min(analysis.peak_memory_in_bytes or together, together) + stack,
        capacity=machine.chip.memory_bytes,
        bandwidth=machine.chip.memory_bandwidth,
        roofline=roofline(program, Network(machine, places(machine, mesh.devices))),
        gathers=rules.parts("embed") > 1,
    )


def in_words(plan: DecodePlan) -> str:
    """What the command prints."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items()) or "one device"
    cost, milliseconds = plan.roofline, 1e3 * plan.roofline.step_seconds
    work = f"memory {1e3 * cost.memory_seconds:.3g}, exchanges {1e3 * cost.exposed_seconds:.3g}"
    advice = ["parameters are gathered for every token; --set mesh.zero=0 keeps them whole"] if plan.gathers else []
    return "\n".join(
        [
            f"{plan.name} on {plan.machine}: {plan.num_devices:,} devices, {mesh} ({plan.compiler}, compiled in "
            f"{plan.compile_seconds:.0f} s)",
            f"decoding            {plan.rows:,} sequences, a cache of {plan.slots:,} tokens each",
            f"memory of a device  {plan.peak / GIB:.1f} GiB of {plan.capacity / GIB:.1f} GiB: parameters "
            f"{plan.parameters / GIB:.2f}, cache {plan.cache / GIB:.2f}",
            f"a token             {milliseconds:.3g} ms: products {1e3 * cost.matrix_seconds:.3g}, {work}; at least "
            f"{1e3 * plan.least_seconds:.3g} to read parameters and cache once",
            f"                    {plan.rows / cost.step_seconds:,.0f} tokens/s of all sequences",
            *advice,
        ]
    )
