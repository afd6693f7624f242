"""What one device does in a step: arithmetic, memory traffic and exchanges, loops multiplied by their turns."""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from pathways_lm.mesh import POD
from pathways_lm.plan.hlo import Computation, Instruction, Program

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
# What moves nothing through memory, or is counted where it began.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "partition-id", "replica-id", "after-all"}
_FREE |= {"opt-barrier", "domain", "custom-call", "recv"}


@dataclass(frozen=True)
class Arithmetic:
    """An instruction that computes: 2 per multiplication with addition, of matrix products only."""

    flops: float
    memory_bytes: float
    """Read from and written to the device's main memory."""
    scope: str
    """The name that the model's code gave it."""


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
    hidden: bool
    """Whether it runs beside other instructions."""
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
    segment = Segment(computation.name, times, [], [], known)
    found.append(segment)
    pending, fused = [computation], defaultdict[str, list[Exchange]](list)
    while pending:
        current = pending.pop()
        for instruction in current:
            opcode = instruction.opcode
            if opcode == "while":
                trips = program.trip_count(current, instruction)
                body = program.computations[instruction.called["body"]]
                told = known and trips is not None
                _walk(program, body, times * (1 if trips is None else trips), told, mesh_shape, found)
                continue
            if opcode in ("call", "async-start") and (name := _target(instruction)):
                pending.append(program.computations[name])
            elif opcode == "conditional":
                branches = instruction.called.get("branch_computations", "")
                pending.extend(program.computations[name.strip().lstrip("%")] for name in branches.split(",") if name)
            elif _exchange_kind(instruction) is not None:
                segment.exchanges.append(_exchange(current, instruction, mesh_shape))
            elif opcode == "fusion" and _carried(program, instruction):
                for channel, exchange in _within_fusion(program, instruction, mesh_shape):
                    fused[channel].append(exchange)
                segment.arithmetic.append(_arithmetic(program, current, instruction))
            elif not opcode.endswith("-done"):
                segment.arithmetic.append(_arithmetic(program, current, instruction))
    # TPU's compiler spreads one exchange over several fusions, beside whose products it runs.
    for parts in fused.values():
        segment.exchanges.append(replace(parts[0], hidden=len(parts) > 1 or parts[0].hidden))


def _target(instruction: Instruction) -> str | None:
    return instruction.called.get("calls") or instruction.called.get("to_apply")


def _scope(instruction: Instruction) -> str:
    name = instruction.attribute(r'op_name="([^"]*)"')
    return name[1] if name else instruction.opcode


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


def _carried(program: Program, fusion: Instruction) -> bool:
    return any(_exchange_kind(each) for each in program.computations[fusion.called["calls"]])


def _within_fusion(program: Program, fusion: Instruction, mesh_shape: dict[str, int]) -> Iterator[tuple[str, Exchange]]:
    """Exchanges by their channels. TPU's compiler writes a reduce-scatter as an all-reduce and a slice of it."""
    inner = program.computations[fusion.called["calls"]]
    scattered = "all-reduce-scatter" in inner.name
    for instruction in inner:
        kind = _exchange_kind(instruction)
        if kind:
            kind = "reduce-scatter" if scattered and kind == "all-reduce" else kind
            channel = instruction.attribute(r"channel_id=(\d+)")
            name = channel[1] if channel else f"{inner.name} {instruction.name}"
            yield name, _exchange(inner, instruction, mesh_shape, kind, "async" in inner.name)


def _exchange(
    computation: Computation,
    instruction: Instruction,
    mesh_shape: dict[str, int],
    kind: str | None = None,
    hidden: bool = False,
) -> Exchange:
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
    hidden = hidden or instruction.opcode == "send" or instruction.opcode.endswith("-start")
    return Exchange(kind, devices, axes, operand_bytes, hidden, _scope(instruction))


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


# --- arithmetic and memory


def _arithmetic(program: Program, computation: Computation, instruction: Instruction) -> Arithmetic:
    moved = 0.0
    if instruction.opcode == "fusion":
        moved = _fusion_bytes(program, computation, instruction)
    elif instruction.opcode not in _FREE or "gemm" in instruction.attributes or "matmul" in instruction.attributes:
        moved = _plain_bytes(computation, instruction)
    return Arithmetic(_flops(program, computation, instruction), moved, _scope(instruction))


def _flops(program: Program, computation: Computation, instruction: Instruction) -> float:
    """2 per multiplication with addition; products within fusions included."""
    if instruction.opcode == "fusion":
        inner = program.computations[instruction.called["calls"]]
        return sum(_flops(program, inner, each) for each in inner)
    if instruction.opcode == "dot":
        left = computation.instructions[instruction.operands[0]].shapes[0].dims
        contracted = instruction.attribute(r"lhs_contracting_dims=\{([\d,]*)\}")
        return _product_flops(instruction, left, contracted[1] if contracted else "")
    if instruction.opcode == "custom-call" and "__cublas" in instruction.attributes:
        left = computation.instructions[instruction.operands[0]].shapes[0].dims
        contracted = instruction.attribute(r'lhs_contracting_dimensions":\[([^\]]*)\]')
        return _product_flops(instruction, left, contracted[1].replace('"', "") if contracted else "")
    if instruction.opcode == "convolution":
        kernel = computation.instructions[instruction.operands[1]].shapes[0].dims
        source = computation.instructions[instruction.operands[0]].shapes[0].dims
        return _convolution_flops(instruction, source, kernel)
    return 0.0


def _product_flops(instruction: Instruction, left: tuple[int, ...], contracted: str) -> float:
    inner = math.prod(left[int(axis)] for axis in contracted.split(",") if axis)
    return 2.0 * math.prod(instruction.shapes[0].dims) * inner


def _convolution_flops(instruction: Instruction, source: tuple[int, ...], kernel: tuple[int, ...]) -> float:
    """TPU's compiler writes matrix products as convolutions, whose windows may lie partly in padding."""
    labels = instruction.attribute(r"dim_labels=(\w+)_(\w+)->(\w+)")
    assert labels is not None, instruction.attributes
    inputs, kernels, outputs = labels[1], labels[2], labels[3]
    out = instruction.shapes[0].dims
    window = instruction.attribute(r"window=\{([^}]*)\}")
    options = dict(each.split("=") for each in window[1].split()) if window else {}
    rank = len(inputs) - 2

    def option(name: str, default: str) -> list[str]:
        return options[name].split("x") if name in options else [default] * rank

    pads, strides = option("pad", "0_0"), option("stride", "1")
    spread_in, spread_kernel = option("lhs_dilate", "1"), option("rhs_dilate", "1")
    taps = 1
    for axis in range(rank):
        place = str(axis)
        taps *= _taps(
            source[inputs.index(place)],
            kernel[kernels.index(place)],
            out[outputs.index(place)],
            int(pads[axis].split("_")[0]),
            int(strides[axis]),
            int(spread_in[axis]),
            int(spread_kernel[axis]),
        )
    return 2.0 * out[outputs.index("b")] * out[outputs.index("f")] * kernel[kernels.index("i")] * taps


@lru_cache(maxsize=4096)
def _taps(source: int, kernel: int, out: int, pad: int, stride: int, spread_in: int, spread_kernel: int) -> int:
    """Pairs of an output's place and a kernel's that meet an element of the source and not padding or a gap."""
    at = np.arange(out)[:, None] * stride + np.arange(kernel)[None] * spread_kernel - pad
    met = (at >= 0) & (at <= (source - 1) * spread_in) & (at % spread_in == 0)
    return int(met.sum())


def _result_bytes(instruction: Instruction) -> float:
    return sum(shape.num_bytes for shape in instruction.shapes if not shape.on_chip)


def _plain_bytes(computation: Computation, instruction: Instruction) -> float:
    opcode = instruction.opcode
    if opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * _result_bytes(instruction)
    if opcode == "dynamic-update-slice":
        return 2 * _result_bytes(computation.instructions[instruction.operands[1]])
    if opcode == "scatter":
        return 3 * _result_bytes(computation.instructions[instruction.operands[-1]])
    if opcode in ("copy-start", "slice-start"):
        # (to, from, token) or ((from), to, token): the part that is moved, once for each end in main memory.
        moved = min(shape.num_bytes for shape in instruction.shapes if shape.num_bytes > 8 or len(shape.dims) > 0)
        return moved * sum(not shape.on_chip for shape in instruction.shapes[:2])
    read = sum(_result_bytes(computation.instructions[name]) for name in instruction.operands)
    return read + _result_bytes(instruction)


def _fusion_bytes(program: Program, computation: Computation, fusion: Instruction) -> float:
    """What a fusion reads and writes: of arrays of which it takes or changes a slice, the slice."""
    inner = program.computations[fusion.called["calls"]]
    total = 0.0
    for number, name in enumerate(fusion.operands):
        given = computation.instructions[name]
        if any(not shape.on_chip for shape in given.shapes) and number in inner.parameters:
            total += _read_bytes(inner, inner.parameters[number], given.num_bytes)
    written = [inner.root]
    if inner.root.opcode == "tuple":
        written = [inner.instructions[name] for name in inner.root.operands]
    for shape, source in zip(fusion.shapes, written, strict=False):
        if shape.on_chip:
            continue
        source = _behind(inner, source)
        if source.opcode == "dynamic-update-slice":
            total += inner.instructions[source.operands[1]].num_bytes
        else:
            total += shape.num_bytes
    return total


def _behind(computation: Computation, instruction: Instruction) -> Instruction:
    while instruction.opcode in ("bitcast", "copy", "convert") and instruction.operands:
        instruction = computation.instructions[instruction.operands[0]]
    return instruction


def _read_bytes(inner: Computation, parameter: Instruction, whole: float) -> float:
    read = 0.0
    for user in inner.uses.get(parameter.name, ()):
        if user.opcode in ("dynamic-slice", "slice", "gather") and user.operands[0] == parameter.name:
            read += user.num_bytes
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == parameter.name:
            continue
        elif user.opcode == "bitcast":
            read += _read_bytes(inner, user, whole)
        else:
            return whole
    return min(read, whole)
