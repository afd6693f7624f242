"""How one tensor of a published checkpoint stands for parts of ours, and back, said in the letters of their dimensions.

`"(n h) d -> d n h"` reads: the foreign tensor has heads and head size in one dimension, then the model dimension; ours
has the model dimension first. `p` on our side counts the arrays that one foreign tensor holds side by side.
"""

import math
import re
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Layout:
    """Groups of letters of a foreign tensor's dimensions, and the letters of ours."""

    foreign: tuple[tuple[str, ...], ...]
    ours: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> "Layout":
        """From `"d (p n h) -> p d n h"`."""
        left, _, right = text.partition(" -> ")
        groups = tuple(tuple(match.strip("()").split()) for match in re.findall(r"\([^)]*\)|\S+", left))
        return cls(groups, tuple(right.split()))

    def foreign_shape(self, our_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The foreign tensor's shape for ours."""
        sizes = dict(zip(self.ours, our_shape, strict=True))
        return tuple(math.prod(sizes[letter] for letter in group) for group in self.foreign)

    def to_ours(self, foreign: np.ndarray, our_shape: tuple[int, ...]) -> np.ndarray:
        """A view of the foreign tensor, in our order."""
        sizes = dict(zip(self.ours, our_shape, strict=True))
        letters = [letter for group in self.foreign for letter in group]
        apart = foreign.reshape([sizes[letter] for letter in letters])
        return apart.transpose([letters.index(letter) for letter in self.ours])

    def to_foreign(self, ours: np.ndarray) -> np.ndarray:
        """The inverse of `to_ours`."""
        letters = [letter for group in self.foreign for letter in group]
        ordered = ours.transpose([self.ours.index(letter) for letter in letters])
        return ordered.reshape(self.foreign_shape(ours.shape))
