"""Arithmetic and memory traffic of single instructions of a compiled program."""

import math
import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pathways_lm.kernels.work import work_in
from pathways_lm.plan.hlo import COLLECTIVES, Computation, Instruction, Program

# What moves nothing through memory, or is counted where it began.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "partition-id", "replica-id", "after-all"}
_FREE |= {"opt-barrier", "domain", "custom-call", "recv"}


# Products of an attention's kernels, each over all pairs of queries and keys that it visits: scores and values; the
# gradients of keys and values with scores and the gradients of weights again; of queries, with these again.
_KERNELS = (("_fwd", 2), ("_dkv", 4), ("_dq", 3), ("mha_forward", 2), ("mha_backward", 4 + 3))
_TARGETS = ("tpu_custom_call", "__gpu$xla.gpu.triton")


@dataclass(frozen=True)
class Arithmetic:
    """An instruction that computes: 2 per multiplication with addition, of matrix products only."""

    flops: float
    memory_bytes: float
    """Read from and written to the device's main memory."""
    scope: str
    """The name that the model's code gave it."""


def scope_of(instruction: Instruction) -> str:
    """The name that the model's code gave an instruction."""
    name = instruction.attribute(r'op_name="([^"]*)"')
    return name[1] if name else instruction.opcode


def arithmetic_of(program: Program, computation: Computation, instruction: Instruction) -> Arithmetic:
    """What an instruction computes and moves."""
    if (kernel := kernel_arithmetic(computation, instruction)) is not None:
        return Arithmetic(*kernel, scope_of(instruction))
    moved = 0.0
    if instruction.opcode == "fusion":
        moved = _fusion_bytes(program, computation, instruction)
    elif instruction.opcode not in _FREE or "gemm" in instruction.attributes or "matmul" in instruction.attributes:
        moved = _plain_bytes(computation, instruction)
    return Arithmetic(_flops(program, computation, instruction), moved, scope_of(instruction))


def kernel_arithmetic(computation: Computation, instruction: Instruction) -> tuple[float, float] | None:
    """FLOPs and bytes of a kernel that tells its work by its name (`kernels.work`); None of anything else.

    Its operands are read and its results written once, and for each block of queries the keys and values that it
    visits; in a backward pass by blocks of keys it is the queries and gradients that are read so often.
    """
    if instruction.opcode != "custom-call" or not any(target in instruction.attributes for target in _TARGETS):
        return None
    name = scope_of(instruction)
    work = work_in(name)
    products = next((count for phase, count in _KERNELS if phase in name), None)
    if work is None or products is None:
        return None
    if products == 4 and work.fused:
        products += 1
    given = [computation.instructions[operand].shapes[0] for operand in instruction.operands]
    queries = next(shape for shape in given if len(shape.dims) > 2 and shape.dtype in ("bf16", "f16", "f32"))
    size = queries.dims[-1]
    pairs = work.pairs * math.prod(queries.dims) / (work.length * size)
    again = 2 * pairs / work.block * size * queries.num_bytes / math.prod(queries.dims)
    return 2 * products * pairs * size, _plain_bytes(computation, instruction) + again


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
    if "__cublas" in instruction.attributes:
        # What follows is room to work in, of a size that says nothing of its use.
        return read + instruction.shapes[0].num_bytes
    return read + _result_bytes(instruction)


def _fusion_bytes(program: Program, computation: Computation, fusion: Instruction) -> float:
    """What a fusion reads and writes: of arrays of which it takes or changes a slice, the slice.

    What it hands on in its place is not moved, and the arrays of an exchange that runs beside it are the exchange's.
    """
    inner = program.computations[fusion.called["calls"]]
    total = 0.0
    for number, name in enumerate(fusion.operands):
        given = computation.instructions[name]
        if any(not shape.on_chip for shape in given.shapes) and number in inner.parameters:
            total += _read_bytes(program, inner, inner.parameters[number], given.num_bytes)
    written = [inner.root]
    if inner.root.opcode == "tuple":
        written = [inner.instructions[name] for name in inner.root.operands]
    handed_on = fusion.attribute(r"output_to_operand_aliasing=\{(.*?\)) ?\}")
    in_place = re.findall(r"\{(\d*)\}: \(", handed_on[1]) if handed_on else []
    for number, (shape, source) in enumerate(zip(fusion.shapes, written, strict=False)):
        output = str(number) if len(fusion.shapes) > 1 else ""
        if shape.on_chip or _of_exchange(source) or (source.opcode == "parameter" and output in in_place):
            continue
        source = _behind(inner, source)
        if source.opcode == "dynamic-update-slice":
            total += inner.instructions[source.operands[1]].num_bytes
        else:
            total += shape.num_bytes
    return total


def _of_exchange(instruction: Instruction) -> bool:
    """Whether it is an exchange, or begins or ends one that TPU's compiler spreads over fusions."""
    return instruction.opcode in COLLECTIVES or "AsyncCollective" in instruction.attributes


def _in_place(user: Instruction, parameter: Instruction) -> bool:
    """Whether the array is changed or handed on where it lies."""
    changed = user.opcode == "dynamic-update-slice" and user.operands[0] == parameter.name
    return changed or (user.root and user.opcode == "tuple")


def _behind(computation: Computation, instruction: Instruction) -> Instruction:
    while instruction.opcode in ("bitcast", "copy", "convert") and instruction.operands:
        instruction = computation.instructions[instruction.operands[0]]
    return instruction


def _without_bitcasts(computation: Computation, instruction: Instruction) -> Instruction:
    while instruction.opcode == "bitcast":
        instruction = computation.instructions[instruction.operands[0]]
    return instruction


def _read_bytes(program: Program, inner: Computation, parameter: Instruction, whole: float) -> float:
    """What a fusion reads of an argument, in fusions within it, too."""
    read = 0.0
    for user in inner.uses.get(parameter.name, ()):
        if user.opcode in ("dynamic-slice", "slice", "gather") and user.operands[0] == parameter.name:
            read += user.num_bytes
        elif _of_exchange(user) or _in_place(user, parameter):
            continue
        elif user.opcode == "bitcast":
            read += _read_bytes(program, inner, user, whole)
        elif user.opcode == "fusion":
            within = program.computations[user.called["calls"]]
            for number, name in enumerate(user.operands):
                if name != parameter.name or number not in within.parameters:
                    continue
                given = within.parameters[number]
                if _without_bitcasts(within, within.root) is given:
                    # It only gives the array another shape, and is read as what it gives is.
                    read += _read_bytes(program, inner, user, whole)
                else:
                    read += _read_bytes(program, within, given, whole)
        else:
            return whole
    return min(read, whole)
