"""What one device does in a step: arithmetic, memory traffic and exchanges, loops multiplied by their turns."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from pathways_lm.mesh import POD
from pathways_lm.plan.hlo import COLLECTIVES, Computation, Instruction, Program
from pathways_lm.plan.program_arithmetic import Arithmetic, arithmetic_of, scope_of


@dataclass(frozen=True)
class Exchange:
    """A collective, as one device sees it."""

    kind: str
    devices: tuple[int, ...]
    """The group that device 0 exchanges with, as places on the flattened mesh."""
    axes: tuple[str, ...]
    """The mesh axes along which the group lies."""
    operand_bytes: float
    """What the device puts in."""
    start: int
    """How many of its segment's arithmetic instructions come before it begins."""
    end: float
    """How many come before its result is awaited: what lies between runs beside it."""
    scope: str

    @property
    def sent_bytes(self) -> float:
        """What each device sends, by the best algorithm on a ring."""
        n = len(self.devices)
        if self.kind == "all-gather":
            return (n - 1) * self.operand_bytes
        if self.kind == "all-reduce":
            return 2 * (n - 1) / n * self.operand_bytes
        if self.kind == "collective-permute":
            return self.operand_bytes
        return (n - 1) / n * self.operand_bytes


@dataclass
class Segment:
    """Instructions that run one after the other, so many times: the program's entry, or a loop's body."""

    name: str
    times: float
    arithmetic: list[Arithmetic]
    exchanges: list[Exchange]
    known: bool = True
    """Whether the number of turns is known; where not, it is taken as 1."""
    staged: bool = False
    """Whether a pipeline's stages wait for one another between its turns, which are not counted as turns."""


def segments(program: Program, mesh_shape: dict[str, int]) -> list[Segment]:
    """All of a step, loops apart, for the device at the mesh's origin."""
    found: list[Segment] = []
    _walk(program, program.entry, 1.0, True, mesh_shape, found)
    return found


def _walk(
    program: Program,
    computation: Computation,
    times: float,
    known: bool,
    mesh_shape: dict[str, int],
    found: list[Segment],
) -> None:
    body = _Body(program, mesh_shape, Segment(computation.name, times, [], [], known))
    found.append(body.segment)
    for parent, loop in body.read(computation):
        trips = program.trip_count(parent, loop)
        inner = program.computations[loop.called["body"]]
        _walk(program, inner, times * (1 if trips is None else trips), known and trips is not None, mesh_shape, found)


@dataclass
class _Body:
    """Fills a segment, instruction by instruction in the order in which they run."""

    program: Program
    mesh_shape: dict[str, int]
    segment: Segment
    started: dict[str, int] = field(default_factory=dict)
    """Places of the segment's exchanges by what they are awaited by: a channel, or the instruction that starts one."""

    def read(self, computation: Computation) -> Iterator[tuple[Computation, Instruction]]:
        """All but its loops, which are told with where they stand."""
        for instruction in computation:
            opcode = instruction.opcode
            if opcode == "while":
                yield computation, instruction
            elif (given_away := _given_away(self.program, instruction)) is not None:
                self._begin(instruction, _exchange(*given_away, self.mesh_shape))
            elif opcode in ("call", "async-start", "call-start") and (name := _target(instruction)):
                yield from self.read(self.program.computations[name])
            elif opcode == "conditional":
                branches = instruction.called.get("branch_computations", "")
                for name in branches.split(","):
                    if name:
                        yield from self.read(self.program.computations[name.strip().lstrip("%")])
            elif _exchange_kind(instruction) is not None:
                self._begin(instruction, _exchange(computation, instruction, self.mesh_shape))
            elif opcode.endswith("-done"):
                self._await(instruction)
            else:
                self._compute(computation, instruction)

    @property
    def _now(self) -> int:
        return len(self.segment.arithmetic)

    def _begin(self, instruction: Instruction, exchange: Exchange) -> None:
        name = instruction.name
        if instruction.opcode == "send":
            # What comes back from the other slices is awaited where it is received.
            name = _channel(instruction) or name
        self.started[name] = len(self.segment.exchanges)
        self.segment.exchanges.append(replace(exchange, start=self._now, end=self._now))

    def _await(self, done: Instruction) -> None:
        for name in (_channel(done), *done.operands):
            if name in self.started:
                self._beside(self.started[name])

    def _beside(self, place: int) -> None:
        """The exchange runs beside all that was computed since it began."""
        self.segment.exchanges[place] = replace(self.segment.exchanges[place], end=self._now)

    def _compute(self, computation: Computation, instruction: Instruction) -> None:
        """TPU's compiler spreads an exchange over several fusions, beside whose products it runs."""
        carried = []
        if instruction.opcode == "fusion":
            for channel, exchange, beside in _within_fusion(self.program, instruction, self.mesh_shape):
                if channel not in self.started:
                    self.started[channel] = len(self.segment.exchanges)
                    self.segment.exchanges.append(replace(exchange, start=self._now, end=self._now))
                    carried += [self.started[channel]] if beside else []
                else:
                    carried.append(self.started[channel])
        self.segment.arithmetic.append(arithmetic_of(self.program, computation, instruction))
        for place in carried:
            self._beside(place)


def _channel(instruction: Instruction) -> str | None:
    found = instruction.attribute(r"channel_id=(\d+)")
    return f"channel {found[1]}" if found else None


def _target(instruction: Instruction) -> str | None:
    return instruction.called.get("calls") or instruction.called.get("to_apply")


# --- exchanges


def _exchange_kind(instruction: Instruction) -> str | None:
    """The collective that an instruction is or starts.

    Between TPU's slices, collectives are handed to the host by `send`.
    """
    if instruction.opcode == "send":
        between_slices = instruction.attribute(r'_xla_megascale_transfer_type="(\w+)"')
        return between_slices[1].lower().replace("_", "-") if between_slices else "collective-permute"
    if "source_target_pairs={}" in instruction.attributes:
        # What a partitioner leaves of an exchange in which nobody sends.
        return None
    kind = instruction.opcode.removesuffix("-start")
    return kind if kind in COLLECTIVES else None


def _given_away(program: Program, call: Instruction) -> tuple[Computation, Instruction] | None:
    """The exchange that a call hands to a TPU's sparse cores, beside which the others go on."""
    if call.opcode != "call-start":
        return None
    inner = program.computations[call.called["to_apply"]]
    return next(((inner, each) for each in inner if _exchange_kind(each)), None)


def _within_fusion(
    program: Program, fusion: Instruction, mesh_shape: dict[str, int]
) -> Iterator[tuple[str, Exchange, bool]]:
    """Exchanges by their channels, and whether each runs beside the fusion's own arithmetic.

    TPU's compiler writes a reduce-scatter as an all-reduce and a slice of it.
    """
    inner = program.computations[fusion.called["calls"]]
    scattered = "all-reduce-scatter" in inner.name
    for instruction in inner:
        kind = _exchange_kind(instruction)
        if kind:
            kind = "reduce-scatter" if scattered and kind == "all-reduce" else kind
            name = _channel(instruction) or f"{inner.name} {instruction.name}"
            yield name, _exchange(inner, instruction, mesh_shape, kind), "async" in inner.name


def _exchange(
    computation: Computation,
    instruction: Instruction,
    mesh_shape: dict[str, int],
    kind: str | None = None,
) -> Exchange:
    """As if it were awaited where it begins."""
    kind = kind or _exchange_kind(instruction)
    assert kind is not None
    size = math.prod(mesh_shape.values())
    if instruction.opcode == "send" and POD in mesh_shape:
        devices = tuple(range(0, size, size // mesh_shape[POD]))
    else:
        devices = _group(instruction, size)
    places = np.array(np.unravel_index(devices, tuple(mesh_shape.values())))
    axes = tuple(axis for axis, along in zip(mesh_shape, places, strict=True) if len(set(along.tolist())) > 1)
    operand_bytes = sum(computation.instructions[name].num_bytes for name in instruction.operands)
    return Exchange(kind, devices, axes, operand_bytes, 0, 0, scope_of(instruction))


def _group(instruction: Instruction, size: int) -> tuple[int, ...]:
    """The devices of the first group, in any of the four ways in which groups are written.

    Lists; an iota that is reshaped and transposed; a mesh with the axes that vary; pairs of sources and targets.
    """
    pairs = instruction.attribute(r"source_target_pairs=\{\{(\d+),(\d+)\}")
    if pairs:
        return int(pairs[1]), int(pairs[2])
    mesh = instruction.attribute(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^)]*(?:\)[^)]*)?)\))? ?\{([^}]*)\}"
    )
    if mesh:
        return _mesh_group(mesh[1], mesh[2], mesh[3])
    iota = instruction.attribute(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
    if iota:
        groups = _iota(iota[3], iota[4]).reshape(int(iota[1]), int(iota[2]))
        return tuple(groups[0].tolist())
    listed = instruction.attribute(r"replica_groups=\{\{([\d,]+)\}")
    if listed:
        return tuple(int(device) for device in listed[1].split(","))
    if instruction.attribute(r"replica_groups=\{\}"):
        return tuple(range(size))
    raise ValueError(
        f"replica groups of {instruction.name} are written in an unknown way: {instruction.attributes[:200]}"
    )


def _iota(dims: str, permutation: str | None) -> np.ndarray:
    shape = [int(size) for size in dims.split(",")]
    ids = np.arange(math.prod(shape)).reshape(shape)
    return ids.transpose([int(axis) for axis in permutation.split(",")]) if permutation else ids


def _mesh_group(dims: str, order: str | None, varying: str) -> tuple[int, ...]:
    names, sizes = zip(*((name, int(size)) for name, size in re.findall(r"'([^']+)'=(\d+)", dims)), strict=True)
    if order:
        written = re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", order)
        if written is None:
            raise ValueError(f"device order of a mesh is written in an unknown way: {order}")
        ids = _iota(written[1], written[2])
    else:
        ids = np.arange(math.prod(sizes))
    ids = ids.reshape(sizes)
    chosen: list[slice | int | np.ndarray] = [0] * len(names)
    for name, before, part in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", varying):
        axis = names.index(name)
        if not part:
            chosen[axis] = slice(None)
        else:  # A part of an axis: its size is before x part x the rest, and the middle varies.
            rest = sizes[axis] // (int(before) * int(part))
            chosen[axis] = slice(0, int(part) * rest, rest)
    return tuple(np.ravel(ids[tuple(chosen)]).tolist())
