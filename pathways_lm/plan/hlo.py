"""The optimized program of XLA's compilers, read from its text."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
ITEM_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "f16": 16, "c64": 64, "c128": 128}
_NUMBERED = re.compile(r"[a-z]+(\d+)")
_SHAPE = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_NAME = re.compile(r"%?([\w.\-]+) = ")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(")
_CALLED = re.compile(r"(calls|to_apply|body|condition|branch_computations)=(\{[^}]*\}|%?[\w.\-]+)")
_OPERAND = re.compile(r"%([\w.\-]+)")


@dataclass(frozen=True)
class Shape:
    """One array of an instruction's result."""

    dtype: str
    dims: tuple[int, ...]
    on_chip: bool
    """Whether it lies in the chip's own fast memory (TPU's memory spaces other than 0)."""

    @property
    def num_bytes(self) -> float:
        return math.prod(self.dims) * _bits(self.dtype) / 8


def _bits(dtype: str) -> int:
    if dtype in ITEM_BITS:
        return ITEM_BITS[dtype]
    if dtype.startswith("f8") or dtype.startswith("f4"):
        return int(dtype[1])
    numbered = _NUMBERED.fullmatch(dtype)
    return int(numbered[1]) if numbered else 0  # tokens and opaque values


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    """Of its result: several where that is a tuple."""
    operands: tuple[str, ...]
    literal: str
    """What stands between the brackets: a constant's value, a parameter's number."""
    attributes: str
    root: bool

    @property
    def num_bytes(self) -> float:
        return sum(shape.num_bytes for shape in self.shapes)

    @property
    def called(self) -> dict[str, str]:
        """The computations it calls, by what for."""
        return {kind: name.strip("{}").lstrip("%") for kind, name in _CALLED.findall(self.attributes)}

    def attribute(self, pattern: str) -> re.Match | None:
        return re.search(pattern, self.attributes)


@dataclass
class Computation:
    """Instructions in the order in which they run."""

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions.values())

    @cached_property
    def root(self) -> Instruction:
        return next(instruction for instruction in self if instruction.root)

    @cached_property
    def parameters(self) -> dict[int, Instruction]:
        return {int(each.literal): each for each in self if each.opcode == "parameter"}

    @cached_property
    def uses(self) -> dict[str, list[Instruction]]:
        """Who reads each instruction."""
        found: dict[str, list[Instruction]] = {}
        for instruction in self:
            for operand in instruction.operands:
                found.setdefault(operand, []).append(instruction)
        return found


@dataclass
class Program:
    """A module: its computations, and which of them is run."""

    computations: dict[str, Computation]
    entry: Computation

    def trip_count(self, parent: Computation, loop: Instruction) -> int | None:
        """How often a while loop runs; None where the text does not tell.

        GPU's compiler writes it down. Otherwise the condition compares one item of the loop's tuple with a constant,
        the tuple says where that item starts, and the body's tuple by how much it grows.
        """
        known = loop.attribute(r'known_trip_count":\{"n":"(\d+)"')
        if known:
            return int(known[1])
        condition = self.computations[loop.called["condition"]]
        body = self.computations[loop.called["body"]]
        limit = _compared(self, condition)
        if limit is None:
            return None
        index, end = limit
        start = _constant(self, parent, parent.instructions[loop.operands[0]].operands[index])
        step = _increment(self, body, index)
        if start is None or not step:
            return None
        return max(0, -(-(end - start) // step))


def parse(text: str) -> Program:
    """The program that `Compiled.as_text()` prints."""
    computations: dict[str, Computation] = {}
    entry = current = None
    for line in _lines(text):
        if line.startswith((" ", "\t")):
            if current is not None and " = " in line:
                instruction = _instruction(line.strip())
                current.instructions[instruction.name] = instruction
        elif line.startswith("}"):
            current = None
        elif line.endswith("{") and (header := _HEADER.match(line)):
            current = computations[header[2]] = Computation(header[2])
            entry = current if header[1] else entry
    if entry is None:
        raise ValueError("no entry computation in the compiler's text")
    return Program(computations, entry)


def _lines(text: str) -> Iterator[str]:
    """Lines, of which those of a kernel, written over several, are put together without what it tells of itself."""
    begun = ""
    for line in text.splitlines():
        if begun:
            if line.lstrip().startswith("}"):
                yield begun + line.lstrip()
                begun = ""
        elif "kernel_metadata={" in line and line.count("{") > line.count("}"):
            begun = line
        else:
            yield line


def _instruction(line: str) -> Instruction:
    root = line.startswith("ROOT ")
    line = line.removeprefix("ROOT ")
    name = _NAME.match(line)
    assert name is not None, line
    rest = line[name.end() :]
    cut = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shapes = tuple(_shape(found) for found in _SHAPE.finditer(rest[:cut]))
    rest = rest[cut:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    inside = rest[opening + 1 : closing]
    operands = tuple(_OPERAND.findall(inside))
    return Instruction(name[1], rest[:opening], shapes, operands, inside, rest[closing + 1 :], root)


def _shape(found: re.Match) -> Shape:
    dims = tuple(int(size.removeprefix("<=")) for size in found[2].split(",") if size)
    space = re.search(r"S\((\d+)\)", found[3] or "")
    return Shape(found[1], dims, space is not None and space[1] not in ("0", "5"))


def _closing(text: str, opening: int) -> int:
    depth = 0
    for place in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place
    raise ValueError(f"brackets that do not close: {text[:80]}")


def _compared(program: Program, condition: Computation) -> tuple[int, int] | None:
    """The item of the loop's tuple that is compared, and the number at which the loop ends."""
    root = condition.root
    within, compare = condition, root
    arguments = list(root.operands)
    if root.opcode == "fusion":
        within = program.computations[root.called["calls"]]
        compare = within.root
        arguments = [_outside(within, root, operand) or operand for operand in compare.operands]
    if compare.opcode != "compare" or "direction=LT" not in compare.attributes or len(arguments) != 2:
        return None
    item, end = arguments
    value = _constant(program, condition, end)
    if value is None:
        value = _constant(program, within, end)
    index = _item(condition, item)
    return None if value is None or index is None else (index, value)


def _outside(within: Computation, call: Instruction, name: str) -> str | None:
    """What a fusion is given for one of its parameters."""
    inner = within.instructions.get(name)
    return call.operands[int(inner.literal)] if inner is not None and inner.opcode == "parameter" else None


def _item(computation: Computation, name: str) -> int | None:
    """Which item of the loop's tuple this is."""
    instruction = computation.instructions.get(name)
    while instruction is not None and instruction.opcode in ("copy", "bitcast", "convert"):
        instruction = computation.instructions.get(instruction.operands[0])
    if instruction is None or instruction.opcode != "get-tuple-element":
        return None
    index = instruction.attribute(r"index=(\d+)")
    return int(index[1]) if index else None


def _constant(program: Program, computation: Computation, name: str) -> int | None:
    instruction = computation.instructions.get(name)
    while instruction is not None and instruction.opcode in ("copy", "bitcast", "convert", "copy-done", "copy-start"):
        instruction = computation.instructions.get(instruction.operands[0])
    if instruction is None or instruction.opcode != "constant":
        return None
    return int(instruction.literal) if re.fullmatch(r"-?\d+", instruction.literal) else None


def _increment(program: Program, body: Computation, index: int) -> int | None:
    """By how much one turn of the body raises an item of its tuple."""
    if body.root.opcode != "tuple":
        return None
    within, new = body, body.instructions[body.root.operands[index]]
    total = 0
    while True:
        if new.opcode in ("copy", "bitcast"):
            new = within.instructions[new.operands[0]]
        elif new.opcode == "fusion":
            inner = program.computations[new.called["calls"]]
            step = _added(program, inner, inner.root)
            if step is None:
                return None
            outer = _outside(inner, new, step[1])
            if outer is None:
                return None
            total, new = total + step[0], within.instructions[outer]
        elif new.opcode == "add":
            step = _added(program, within, new)
            if step is None:
                return None
            total, new = total + step[0], within.instructions[step[1]]
        else:
            return total if _item(within, new.name) == index else None


def _added(program: Program, computation: Computation, add: Instruction) -> tuple[int, str] | None:
    """The constant that is added, and what to."""
    if add.opcode != "add":
        return None
    for number, other in (add.operands, add.operands[::-1]):
        value = _constant(program, computation, number)
        if value is not None:
            return value, other
    return None
