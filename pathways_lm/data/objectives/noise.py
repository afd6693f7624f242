"""Spans that are dropped from a text, and sentinels in their place (T5, arXiv:1910.10683, section 3.1.4)."""

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


def noise_mask(length: int, generator: np.random.Generator, noise: Noise = T5_NOISE) -> np.ndarray:
    """Which of `length` tokens are dropped: spans of text and of noise in turn, text first, all cuts alike."""
    dropped, spans = noise.amount(length)
    runs = np.stack([_partition(length - dropped, spans, generator), _partition(dropped, spans, generator)], axis=1)
    return np.repeat(np.tile([False, True], spans), runs.ravel())


def corrupt(text: np.ndarray, noise_mask: np.ndarray, first_sentinel: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets: what is kept with a sentinel for each span, and each sentinel with its span behind it.

    Sentinel i has id `first_sentinel` - i.
    """
    begins = noise_mask & ~np.concatenate([[False], noise_mask[:-1]])
    sentinels = first_sentinel - (np.cumsum(begins) - 1)
    inputs = np.where(begins, sentinels, text)[~noise_mask | begins]
    pairs = np.stack([sentinels, text], axis=1).ravel()
    return inputs, pairs[np.stack([begins, noise_mask], axis=1).ravel()]


def _partition(total: int, parts: int, generator: np.random.Generator) -> np.ndarray:
    """`parts` whole numbers of at least 1 that add up to `total`, each such list as likely as any other."""
    cuts = np.sort(generator.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff([0, *cuts, total])
