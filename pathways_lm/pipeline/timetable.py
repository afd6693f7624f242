"""Which stage works on which microbatch at which tick.

A *leg* is the way of all microbatches through the stages of one tower, forward or backward. On a leg a microbatch
visits every stage once for each of its chunks: item i of the leg is at stage s at tick start + s + i, backward at
start + (stages - 1 - s) + i. So what leaves a stage is needed by its neighbour at the very next tick, and what leaves
the last stage by the first for the next chunk. All schedules are legs with other starts.

GPipe (arXiv:1811.06965): each leg starts when the one before has ended. 1F1B (PipeDream; Megatron-LM,
arXiv:2104.04473, section 2.2): each starts when the first item of the one before has arrived. In one program for all
devices a tick takes as long as the longest of its stages, so a tick of 1F1B holds one microbatch's forward and
another's backward on every stage; alternating ticks would each wait for a neighbour's backward.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

Number = Any
"""An int, or an array of them."""


@dataclass(frozen=True)
class Segment:
    """Ticks in which the same legs are on their way."""

    first: int
    end: int
    forward: tuple[int, ...]
    """Towers whose forward legs are."""
    backward: tuple[int, ...]


@dataclass(frozen=True)
class Timetable:
    """When the legs of every tower begin.

    Args:
      pipeline: `gpipe` or `1f1b`.
      towers: one, or two of an encoder-decoder.
      chunks: runs of layers of each stage; with several, microbatches go in groups of as many as there are stages, each
        group through a chunk before the next (interleaved stages, arXiv:2104.04473, section 2.2).
    """

    pipeline: str
    stages: int
    chunks: int
    microbatches: int
    towers: int = 1

    @property
    def items(self) -> int:
        """Of each leg."""
        return self.chunks * self.microbatches

    @property
    def leg_ticks(self) -> int:
        """From a leg's first item at its first stage to the last item at the last."""
        return self.items + self.stages - 1

    def forward(self, tower: int) -> int:
        """The tick at which a tower's forward leg starts."""
        return tower * self._lag

    def backward(self, tower: int) -> int:
        """The tick at which its backward leg starts, at the last stage."""
        # What has arrived turns round in the same tick where that can be.
        turned = self.forward(self.towers - 1) + self._lag
        return turned + (self.towers - 1 - tower) * self._lag

    @property
    def _lag(self) -> int:
        arrived = self.chunks * self.stages - 1
        return arrived if self.pipeline == "1f1b" else self.leg_ticks

    @property
    def ticks(self) -> int:
        return self.backward(0) + self.leg_ticks

    def item(self, index: Number) -> tuple[Number, Number]:
        """Microbatch and chunk of a forward leg's item."""
        S, v = self.stages, self.chunks
        if v == 1:
            return index, index * 0
        return index // (v * S) * S + index % S, index // S % v

    def returning(self, index: Number) -> tuple[Number, Number]:
        """The same of a backward leg: groups go through their chunks from the last to the first."""
        microbatch, chunk = self.item(index)
        return microbatch, self.chunks - 1 - chunk

    def index(self, microbatch: Number, chunk: Number) -> Number:
        """The inverse of `item`."""
        S, v = self.stages, self.chunks
        if v == 1:
            return microbatch
        return microbatch // S * v * S + chunk * S + microbatch % S

    def segments(self) -> list[Segment]:
        """The ticks from the first to the last."""
        towers = range(self.towers)
        starts = [self.forward(tower) for tower in towers] + [self.backward(tower) for tower in towers]
        edges = sorted({edge for start in starts for edge in (start, start + self.leg_ticks)})

        def running(start: Callable[[int], int], tick: int) -> tuple[int, ...]:
            return tuple(tower for tower in towers if start(tower) <= tick < start(tower) + self.leg_ticks)

        return [
            Segment(first, end, running(self.forward, first), running(self.backward, first))
            for first, end in pairwise(edges)
        ]

    def input_slots(self, tower: int) -> int:
        """How many stage inputs wait, at most, at a stage for the way back."""
        made = [self.forward(tower) + index for index in range(self.items)]
        used = [0] * self.items
        for back in range(self.items):
            used[self.index(*self.returning(back))] = self.backward(tower) + self.stages - 1 + back
        return slots(made, used)

    def arrival(self, tower: int, microbatch: int) -> int:
        """The tick at which a microbatch leaves a tower's last stage."""
        return self.forward(tower) + self.index(microbatch, self.chunks - 1) + self.stages - 1

    def start(self, tower: int, microbatch: int) -> int:
        """The tick at which a microbatch enters a tower's first stage."""
        return self.forward(tower) + self.index(microbatch, 0)

    def turn(self, tower: int, microbatch: int) -> int:
        """The tick at which its gradient enters a tower's last stage."""
        return self.backward(tower) + self.index(microbatch, 0)

    def home(self, tower: int, microbatch: int) -> int:
        """The tick at which its gradient leaves the tower's first stage."""
        return self.backward(tower) + self.index(microbatch, self.chunks - 1) + self.stages - 1

    @property
    def bubble(self) -> float:
        """The time that a stage waits, as a share of its time at work: (stages - 1) / (chunks microbatches).

        Megatron-LM, arXiv:2104.04473, section 2.2. Counted from the legs: each is on its way `leg_ticks`, and works
        `items` of them at any stage.
        """
        return (self.leg_ticks - self.items) / self.items


def slots(made: list[int], used: list[int]) -> int:
    """The least number of places such that thing i in place i mod n is used before the next is put there."""
    count = len(made)
    for n in range(1, count):
        if all(made[i + n] > used[i] for i in range(count - n)):
            return n
    return max(1, count)
