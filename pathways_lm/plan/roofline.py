"""How long a step should take on a machine: arithmetic, memory and every network, each against its limit."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from pathways_lm.plan.machine import MATRIX_EFFICIENCY
from pathways_lm.plan.network import Network
from pathways_lm.plan.program_cost import Segment


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
    bubble_seconds: float = 0.0
    """What stages of a pipeline wait for one another, where it is not among the turns of loops."""

    @property
    def step_seconds(self) -> float:
        return self.matrix_seconds + self.memory_seconds + self.exposed_seconds + self.bubble_seconds


def roofline(segments: Sequence[Segment], network: Network, bubble: float = 0.0) -> Roofline:
    """The step's time, if instructions run one after the other and started exchanges beside them.

    An instruction takes as long as its products at the rate of large ones, or as its memory traffic. An exchange hides
    behind the instructions between its start and where its result is awaited.

    Args:
      bubble: the idle time of stages as a share of their work, where segments have the turns of the work alone.
    """
    machine = network.machine
    rate = machine.chip.flops * MATRIX_EFFICIENCY
    flops = moved = matrix = waiting = exposed = staged = 0.0
    rows: dict[tuple, list[float]] = {}
    for segment in segments:
        busy = [
            max(each.flops / rate, each.memory_bytes / machine.chip.memory_bandwidth) for each in segment.arithmetic
        ]
        products = sum(each.flops for each in segment.arithmetic) / rate
        flops += segment.times * products * rate
        moved += segment.times * sum(each.memory_bytes for each in segment.arithmetic)
        matrix += segment.times * products
        waiting += segment.times * (sum(busy) - products)
        seconds = [network.seconds(each) for each in segment.exchanges]
        waited = _waited(segment, busy, seconds)
        exposed += segment.times * sum(waited)
        staged += segment.times * (sum(busy) + sum(waited)) if segment.staged else 0.0
        for time, wait, exchange in zip(seconds, waited, segment.exchanges, strict=True):
            row = rows.setdefault((exchange.kind, exchange.axes, len(exchange.devices)), [0.0] * 5)
            for place, value in enumerate((1, exchange.operand_bytes, exchange.sent_bytes, time, wait)):
                row[place] += segment.times * value
    traffic = [Traffic(*key, *row) for key, row in rows.items()]
    traffic.sort(key=lambda each: -each.seconds)
    unknown = sum(not segment.known for segment in segments)
    return Roofline(flops, moved, matrix, waiting, exposed, tuple(traffic), unknown, bubble * staged)


def _waited(segment: Segment, busy: Sequence[float], seconds: Sequence[float]) -> list[float]:
    """How long each exchange keeps the segment waiting. They run one after the other, as they start."""
    clock = network_free = 0.0
    ready, waited = [0.0] * len(seconds), [0.0] * len(seconds)
    starts, ends = defaultdict[int, list[int]](list), defaultdict[int, list[int]](list)
    at_once = set()
    for number, exchange in enumerate(segment.exchanges):
        starts[exchange.start].append(number)
        # What a loop's body does not await is awaited at its end.
        end = int(min(exchange.end, len(busy)))
        if end > exchange.start:
            ends[end].append(number)
        else:
            at_once.add(number)
    for place in range(len(busy) + 1):
        for number in ends[place]:
            waited[number] = max(0.0, ready[number] - clock)
            clock += waited[number]
        for number in starts[place]:
            ready[number] = network_free = max(clock, network_free) + seconds[number]
            if number in at_once:
                waited[number] = ready[number] - clock
                clock = ready[number]
        clock += busy[place] if place < len(busy) else 0.0
    return waited
