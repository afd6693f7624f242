"""How long a step should take on a machine: arithmetic, memory and every network, each against its limit."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pathways_lm.plan.machine import MATRIX_EFFICIENCY, Machine
from pathways_lm.plan.program_cost import Exchange, Segment


@dataclass(frozen=True)
class Traffic:
    """All exchanges of one kind over the same mesh axes in a step, of one device."""

    kind: str
    axes: tuple[str, ...]
    group: int
    times: float
    operand_bytes: float
    sent_bytes: float
    seconds: float
    exposed_seconds: float
    """What no arithmetic hides."""


@dataclass(frozen=True)
class Roofline:
    """A step of one device."""

    flops: float
    """Of matrix products, with all that is computed twice."""
    memory_bytes: float
    matrix_seconds: float
    """All products at the rate that large products reach."""
    memory_seconds: float
    """What instructions take longer than their products because they wait for memory."""
    exposed_seconds: float
    """Exchanges that nothing hides."""
    traffic: tuple[Traffic, ...]
    unknown_loops: int
    """Loops whose number of turns the compiler's text does not tell, counted as one turn."""

    @property
    def step_seconds(self) -> float:
        return self.matrix_seconds + self.memory_seconds + self.exposed_seconds


def exchange_seconds(exchange: Exchange, machine: Machine, places: np.ndarray) -> float:
    """The time of one exchange on links that nothing else uses.

    Args:
      places: of every device of the mesh, in its order, as `compilers.places` gives them.
    """
    group = places[list(exchange.devices)]
    bandwidth = machine.bandwidth(group)
    if exchange.kind in ("all-to-all", "ragged-all-to-all") and machine.chip.torus_rank and len(set(group[:, 0])) == 1:
        # Each byte crosses a quarter of the ring on average, and both directions carry it.
        return exchange.operand_bytes * machine.longest(group) / 4 / bandwidth
    if exchange.kind == "collective-permute" and machine.chip.torus_rank and len(set(group[:, 0])) == 1:
        return exchange.operand_bytes / machine.chip.link_bandwidth
    return exchange.sent_bytes / bandwidth


def roofline(segments: Sequence[Segment], machine: Machine, places: np.ndarray) -> Roofline:
    """The step's time, if instructions run one after the other and started exchanges beside them.

    An instruction takes as long as its products at the rate of large ones, or as its memory traffic. What is started
    and awaited later hides behind the arithmetic of its own loop body; the rest is waited for.
    """
    rate = machine.chip.flops * MATRIX_EFFICIENCY
    flops = moved = matrix = waiting = exposed = 0.0
    rows: dict[tuple, list[float]] = {}
    for segment in segments:
        busy = products = 0.0
        for each in segment.arithmetic:
            flops += segment.times * each.flops
            moved += segment.times * each.memory_bytes
            products += each.flops / rate
            busy += max(each.flops / rate, each.memory_bytes / machine.chip.memory_bandwidth)
        matrix += segment.times * products
        waiting += segment.times * (busy - products)
        seconds = [exchange_seconds(each, machine, places) for each in segment.exchanges]
        hideable = sum(time for time, each in zip(seconds, segment.exchanges, strict=True) if each.hidden)
        shown = max(0.0, hideable - busy) / hideable if hideable else 0.0
        for time, exchange in zip(seconds, segment.exchanges, strict=True):
            waited = time * (shown if exchange.hidden else 1.0)
            exposed += segment.times * waited
            row = rows.setdefault((exchange.kind, exchange.axes, len(exchange.devices)), [0.0] * 5)
            for place, value in enumerate((1, exchange.operand_bytes, exchange.sent_bytes, time, waited)):
                row[place] += segment.times * value
    traffic = [Traffic(*key, *row) for key, row in rows.items()]
    traffic.sort(key=lambda each: -each.seconds)
    unknown = sum(not segment.known for segment in segments)
    return Roofline(flops, moved, matrix, waiting, exposed, tuple(traffic), unknown)
