"""Texts with spans dropped: T5's span corruption and UL2's mixture of denoisers.

A row is taken as one text, whatever documents it holds; a padded row is corrupted in proportion to what it holds.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pathways_lm.data.objectives.noise import T5_NOISE, Noise, corrupt, noise_mask
from pathways_lm.data.objectives.towers import one_tower, two_towers
from pathways_lm.models.batch import Batch

# The mode tokens are the first three of the extra ids.
NLU, NLG, S2S = range(3)


class Denoiser(NamedTuple):
    """One kind of noise, and the mode token in front of its inputs; none where `mode` is None."""

    noise: Noise
    mode: int | None = None

    def lengths(self, length: int) -> tuple[int, int]:
        inputs, targets = self.noise.lengths(length)
        return inputs + (self.mode is not None), targets


T5_DENOISERS = (Denoiser(T5_NOISE),)
# arXiv:2205.05131, table 1: regular, sequential and extreme ones, drawn alike.
UL2_DENOISERS = (
    Denoiser(Noise(0.15, 3), NLU),
    Denoiser(Noise(0.15, 8), NLU),
    Denoiser(Noise(0.25, 0), S2S),
    Denoiser(Noise(0.5, 3), NLG),
    Denoiser(Noise(0.5, 8), NLG),
    Denoiser(Noise(0.15, 64), NLG),
    Denoiser(Noise(0.5, 64), NLG),
)


class Room(NamedTuple):
    """What rows of up to `raw` tokens become at most."""

    raw: int
    inputs: int
    targets: int
    total: int
    """Of inputs and targets of one and the same text."""
    spans: int


@functools.cache
def room(denoisers: tuple[Denoiser, ...], length: int, two: bool) -> Room:
    """For the longest rows that still fit, as shorter ones do: into an encoder, or inputs and targets into a decoder.

    `raw` is 0 where not two tokens fit.
    """
    best = Room(0, 0, 0, 0, 0)
    while True:
        raw = max(best.raw + 1, 2)
        pairs = [denoiser.lengths(raw) for denoiser in denoisers]
        wider = Room(
            raw,
            max(best.inputs, *(inputs for inputs, _ in pairs)),
            max(best.targets, *(targets for _, targets in pairs)),
            max(best.total, *(inputs + targets for inputs, targets in pairs)),
            max(best.spans, *(denoiser.noise.amount(raw)[1] for denoiser in denoisers)),
        )
        if (wider.inputs if two else wider.total) > length:
            return best
        best = wider


class Ids(NamedTuple):
    """What stands for an end, for the first dropped span, and for the first mode."""

    end: int
    first_sentinel: int
    first_mode: int


def denoised(
    text: np.ndarray, denoisers: Sequence[Denoiser], ids: Ids, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets, each closed by the end, that one of the denoisers makes of a text of at least 2 tokens."""
    chosen = denoisers[int(generator.integers(len(denoisers)))] if len(denoisers) > 1 else denoisers[0]
    inputs, targets = corrupt(text, noise_mask(len(text), generator, chosen.noise), ids.first_sentinel)
    mode = [] if chosen.mode is None else [ids.first_mode + chosen.mode]
    return np.concatenate([mode, inputs, [ids.end]]), np.append(targets, ids.end)


def denoise_two_towers(
    rows: np.ndarray,
    denoisers: Sequence[Denoiser],
    lengths: tuple[int, int],
    ids: Ids,
    generators: Sequence[np.random.Generator],
) -> Batch:
    """Inputs [B, lengths[0]] for an encoder, targets [B, lengths[1]] for a decoder."""
    inputs, targets = (np.zeros((len(rows), length), np.int32) for length in lengths)
    for row, generator in enumerate(generators):
        text = _text(rows[row])
        if len(text) > 1:
            kept, asked = denoised(text, denoisers, ids, generator)
            inputs[row, : len(kept)] = kept
            targets[row, : len(asked)] = asked
    return two_towers(inputs, targets, (inputs != 0).astype(np.int32), (targets != 0).astype(np.int32))


def denoise_one_tower(
    rows: np.ndarray,
    denoisers: Sequence[Denoiser],
    length: int,
    ids: Ids,
    generators: Sequence[np.random.Generator],
    both_ways: bool,
) -> Batch:
    """Inputs and targets one behind the other, [B, length], for a decoder."""
    laid = np.zeros((len(rows), length), np.int32)
    asked = np.zeros((len(rows), length), bool)
    for row, generator in enumerate(generators):
        text = _text(rows[row])
        if len(text) > 1:
            inputs, targets = denoised(text, denoisers, ids, generator)
            stop = len(inputs) + len(targets)
            laid[row, :stop] = np.concatenate([inputs, targets])
            asked[row, len(inputs) : stop] = True
    return one_tower(laid, (laid != 0).astype(np.int32), asked, both_ways)


def _text(row: np.ndarray) -> np.ndarray:
    return row[: np.count_nonzero(row)]
