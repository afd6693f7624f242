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


class Texts(NamedTuple):
    """Rows of at least 2 tokens, without their padding, one behind the other."""

    rows: np.ndarray
    """Which rows of the batch."""
    lengths: np.ndarray
    tokens: np.ndarray


class Denoised(NamedTuple):
    """What becomes of some texts: inputs and targets without ends, each kind one text's behind another's."""

    inputs: np.ndarray
    inputs_lengths: np.ndarray
    targets: np.ndarray
    targets_lengths: np.ndarray
    modes: np.ndarray
    """The mode token of each text; none, [0], where denoisers have no modes."""


def denoised(
    texts: Texts, denoisers: Sequence[Denoiser], ids: Ids, generators: Sequence[np.random.Generator]
) -> Denoised:
    """What one of the denoisers, drawn for each, makes of texts, each with the generator of its row."""
    drawing, lengths = [generators[row] for row in texts.rows], texts.lengths.tolist()
    if len(denoisers) > 1:
        chosen = [denoisers[int(generator.integers(len(denoisers)))] for generator in drawing]
    else:
        chosen = [denoisers[0]] * len(drawing)
    noises = [denoiser.noise for denoiser in chosen]
    inputs, targets = corrupt(texts.tokens, noise_mask(lengths, noises, drawing), lengths, ids.first_sentinel)
    # Without the ends that these count.
    sizes = np.array([noise.lengths(length) for noise, length in zip(noises, lengths, strict=True)]) - 1
    modes = np.array([ids.first_mode + each.mode for each in chosen if each.mode is not None], np.int32)
    return Denoised(inputs, sizes[:, 0], targets, sizes[:, 1], modes)


def denoise_two_towers(
    rows: np.ndarray,
    denoisers: Sequence[Denoiser],
    lengths: tuple[int, int],
    ids: Ids,
    generators: Sequence[np.random.Generator],
) -> Batch:
    """Inputs [B, lengths[0]] for an encoder, targets [B, lengths[1]] for a decoder."""
    inputs, targets = (np.zeros((len(rows), length), np.int32) for length in lengths)
    texts = _texts(rows)
    if len(texts.rows):
        made = denoised(texts, denoisers, ids, generators)
        _place_inputs(inputs, texts.rows, made, ids.end)
        _place(targets, texts.rows, 0, made.targets, made.targets_lengths, ids.end)
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
    texts = _texts(rows)
    if len(texts.rows):
        made = denoised(texts, denoisers, ids, generators)
        begins = _place_inputs(laid, texts.rows, made, ids.end)
        _place(laid, texts.rows, begins, made.targets, made.targets_lengths, ids.end)
        columns = np.arange(length)
        asked[texts.rows] = (columns >= begins[:, None]) & (columns <= (begins + made.targets_lengths)[:, None])
    return one_tower(laid, (laid != 0).astype(np.int32), asked, both_ways)


def _texts(rows: np.ndarray) -> Texts:
    held = np.count_nonzero(rows, axis=1)
    (which,) = np.nonzero(held > 1)
    lengths = held[which]
    return Texts(which, lengths, rows[which][np.arange(rows.shape[1]) < lengths[:, None]])


def _place_inputs(into: np.ndarray, rows: np.ndarray, made: Denoised, end: int) -> np.ndarray:
    """Mode, inputs and end at the beginnings of `rows`. Returns where what comes behind them begins."""
    modes = int(len(made.modes) > 0)
    if modes:
        into[rows, 0] = made.modes
    _place(into, rows, modes, made.inputs, made.inputs_lengths, end)
    return modes + made.inputs_lengths + 1


def _place(
    into: np.ndarray, rows: np.ndarray, start: int | np.ndarray, tokens: np.ndarray, lengths: np.ndarray, end: int
) -> None:
    """Texts of `lengths`, one behind the other in `tokens`, and an end each, into `rows` from columns `start` on."""
    before = np.cumsum(lengths) - lengths
    columns = np.arange(len(tokens)) + np.repeat(start - before, lengths)
    into[np.repeat(rows, lengths), columns] = tokens
    into[rows, start + lengths] = end
