"""Spans that are dropped from a text, and sentinels in their place (T5, arXiv:1910.10683, section 3.1.4)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Noise(NamedTuple):
    """How much is dropped: a share of the tokens, in spans of `mean_span` on average."""

    rate: float
    mean_span: float
    """0: one span, at the end."""

    def amount(self, length: int) -> tuple[int, int]:
        """Tokens dropped of `length`, at least 2, and the number of spans."""
        noise = min(max(round(length * self.rate), 1), length - 1)
        spans = round(noise / self.mean_span) if self.mean_span else 1
        return noise, min(max(spans, 1), length - noise)

    def lengths(self, length: int) -> tuple[int, int]:
        """Of what becomes of `length` tokens: the inputs and the targets, each with its end."""
        noise, spans = self.amount(length)
        return length - noise + spans + 1, noise + spans + 1


T5_NOISE = Noise(0.15, 3.0)


def noise_mask(
    lengths: Sequence[int], noises: Sequence[Noise], generators: Sequence[np.random.Generator]
) -> np.ndarray:
    """Which tokens of texts of `lengths`, one behind the other, are dropped: bool [sum of lengths].

    Spans of text and of noise in turn, text first, all cuts of a text alike.
    """
    amounts = [noise.amount(length) for length, noise in zip(lengths, noises, strict=True)]
    kept, dropped = [], []
    for length, (noise, spans), generator in zip(lengths, amounts, generators, strict=True):
        kept.append((length - noise, _cuts(length - noise, spans, generator)))
        dropped.append((noise, _cuts(noise, spans, generator)))
    runs = np.stack([_parts(kept), _parts(dropped)], axis=1).ravel()
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs)


def corrupt(
    text: np.ndarray, dropped: np.ndarray, lengths: Sequence[int], first_sentinel: int
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of texts of `lengths`, one behind the other, with their `noise_mask`.

    Inputs are what is kept with a sentinel for each span, targets each sentinel with its span behind it. Sentinel i of
    a text has id `first_sentinel` - i.
    """
    begins = dropped.copy()
    begins[1:] &= ~dropped[:-1]  # of texts, too: none begins with a span
    number = np.cumsum(begins)
    starts = np.cumsum(lengths) - lengths
    sentinels = first_sentinel - (number - np.repeat(number[starts], lengths) - 1)
    inputs = np.where(begins, sentinels, text)[~dropped | begins]
    pairs = np.stack([sentinels, text], axis=1).ravel()
    return inputs, pairs[np.stack([begins, dropped], axis=1).ravel()]


def _cuts(total: int, parts: int, generator: np.random.Generator) -> np.ndarray:
    """Where to cut `total` into `parts` of at least 1, in any order; each such list as likely as any other."""
    return generator.choice(total - 1, parts - 1, replace=False) + 1


def _parts(wholes: Sequence[tuple[int, np.ndarray]]) -> np.ndarray:
    """The sizes of the parts of each whole, one behind the other: a whole is its size and where it is cut."""
    sizes = np.array([total for total, _ in wholes])
    ends = np.cumsum(sizes)
    places = np.concatenate([cuts for _, cuts in wholes]) + np.repeat(ends - sizes, [len(cuts) for _, cuts in wholes])
    return np.diff(np.sort(np.concatenate([[0], places, ends])))
