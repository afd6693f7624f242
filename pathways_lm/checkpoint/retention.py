"""Which checkpoints stay when a new one is written."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pathways_lm.config.train import HIGHER_IS_BETTER


@dataclass(frozen=True)
class Keep:
    """The `last` ones; those of every `every` steps; the `best` ones by a figure."""

    last: int = 1
    every: int = 0
    best: int = 0
    by: str = "loss"

    def kept(self, steps: Sequence[int], figures: Mapping[int, Mapping[str, float]]) -> set[int]:
        """Those of `steps`, oldest first, that stay. One without its figure, or with NaN, is never one of the best.

        Of equally good ones the newer is better.
        """
        newest = set(steps[-self.last :])
        regular = {step for step in steps if self.every and step % self.every == 0}
        scores = {step: figures.get(step, {}).get(self.by, math.nan) for step in steps}
        sign = -1 if self.by in HIGHER_IS_BETTER else 1
        ranked = sorted((sign * score, -step) for step, score in scores.items() if not math.isnan(score))
        return newest | regular | {-negative for _, negative in ranked[: self.best]}


class _Saved(Protocol):
    step: int
    metrics: Any


@dataclass(frozen=True)
class Policy:
    """The same, in the form in which Orbax asks.

    Its own policy of the best keeps all checkpoints until there are more than that many, and one with a NaN for ever.
    """

    keep: Keep

    def should_preserve(self, checkpoints: Sequence[_Saved], *, context: object) -> list[bool]:
        """One answer for each, oldest first."""
        figures = {saved.step: saved.metrics for saved in checkpoints if saved.metrics is not None}
        kept = self.keep.kept([saved.step for saved in checkpoints], figures)
        return [saved.step in kept for saved in checkpoints]
