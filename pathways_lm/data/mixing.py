"""Which task each row of the training stream is from, and which of the task's sequences it is.

Row i is a function of i and of the shares in force there alone, and a task's k-th sequence is the same whatever the
others do: shares may change at any row without disturbing any task's order, and a seek costs nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

# A share is rounded to one row in so many, and then kept exactly.
CYCLE = 1 << 16


@dataclass(frozen=True)
class Segment:
    """Rows with the same shares."""

    first_row: int
    shares: tuple[float, ...]
    drawn: tuple[int, ...]
    """Sequences taken from each task before."""

    @cached_property
    def counts(self) -> np.ndarray:
        """Rows of each task in a cycle, int64 [tasks]: largest remainders, and at least one where there is a share."""
        exact = np.asarray(self.shares) / sum(self.shares) * CYCLE
        counts = np.maximum(np.floor(exact).astype(np.int64), exact > 0)
        order = np.argsort(-(exact - np.floor(exact)), kind="stable")
        missing = CYCLE - counts.sum()
        if missing >= 0:
            counts[order[:missing]] += 1
        else:
            counts[np.argmax(counts)] += missing
        return counts

    @cached_property
    def pattern(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each row of a cycle its task, and how many of that task stand before it, int64 [CYCLE] each.

        Each task's rows lie at equal distances, so that any stretch of rows holds about its share.
        """
        tasks = np.repeat(np.arange(len(self.counts)), self.counts)
        ranks = np.concatenate([np.arange(count) for count in self.counts])
        order = np.argsort((ranks + 0.5) / self.counts[tasks], kind="stable")
        return tasks[order], ranks[order]

    def at(self, row: int) -> tuple[int, int]:
        """The task of a row of this segment, and which of its sequences it is."""
        cycle, place = divmod(row - self.first_row, CYCLE)
        task = int(self.pattern[0][place])
        return task, self.drawn[task] + cycle * int(self.counts[task]) + int(self.pattern[1][place])

    def drawn_before(self, row: int) -> tuple[int, ...]:
        """Sequences taken from each task before a row."""
        cycle, place = divmod(row - self.first_row, CYCLE)
        partial = np.bincount(self.pattern[0][:place], minlength=len(self.counts))
        return tuple(int(number) for number in np.asarray(self.drawn) + cycle * self.counts + partial)


class Mixture:
    """The shares of tasks over the rows of a run."""

    def __init__(self, tasks: Sequence[str], segments: Sequence[Segment]):
        self.tasks = tuple(tasks)
        self.segments = list(segments)

    @staticmethod
    def start(shares: Mapping[str, float]) -> "Mixture":
        """A mixture with shares from the first row on."""
        return Mixture(tuple(shares), [Segment(0, tuple(shares.values()), (0,) * len(shares))])

    @property
    def shares(self) -> dict[str, float]:
        """Those in force last."""
        return dict(zip(self.tasks, self.segments[-1].shares, strict=True))

    def change(self, row: int, shares: Mapping[str, float]) -> None:
        """Other shares from `row` on, which no segment has begun behind. Raises ValueError where one has."""
        last = self.segments[-1]
        if row < last.first_row:
            raise ValueError(f"shares changed at row {last.first_row} already, which is behind row {row}")
        if shares.keys() != set(self.tasks):
            raise ValueError(f"shares of {sorted(shares)} for tasks {sorted(self.tasks)}")
        drawn = last.drawn_before(row)
        if row == last.first_row:
            self.segments.pop()
        self.segments.append(Segment(row, tuple(shares[task] for task in self.tasks), drawn))

    def at(self, row: int) -> tuple[int, int]:
        """The number of a row's task, and which of the task's sequences it is, counted over epochs."""
        return self._segment(row).at(row)

    def drawn_before(self, row: int) -> dict[str, int]:
        """Sequences of each task in front of a row."""
        return dict(zip(self.tasks, self._segment(row).drawn_before(row), strict=True))

    def _segment(self, row: int) -> Segment:
        return next(segment for segment in reversed(self.segments) if segment.first_row <= row)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        segments = [[each.first_row, list(each.shares), list(each.drawn)] for each in self.segments]
        return {"tasks": list(self.tasks), "segments": segments}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "Mixture":
        """The inverse of `to_json`."""
        segments = [Segment(row, tuple(shares), tuple(drawn)) for row, shares, drawn in values["segments"]]
        return Mixture(values["tasks"], segments)
