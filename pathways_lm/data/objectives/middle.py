"""Fill in the middle (Bavarian et al., arXiv:2207.14255): a part of a document is moved to its end.

PSM is <PRE> prefix <SUF> suffix <MID> middle, SPM is <PRE> <SUF> suffix <MID> prefix middle; both then say "end".
The paper cuts between characters; here it is between tokens, in each document of a packed row by itself.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pathways_lm.data.objectives.language import causal, documents
from pathways_lm.models.batch import Batch

# The sentinels are the first of the extra ids.
SENTINELS = 3
_TOKENS_PER_DOCUMENT = 256


class MiddleRates(NamedTuple):
    """The share of documents that are rearranged, and of SPM among those."""

    rearranged: float
    spm: float


def most_rearranged(length: int) -> int:
    """Documents of a row of `length` that are rearranged at most; more in a row stay as they are."""
    return 1 + length // _TOKENS_PER_DOCUMENT


def middle_raw_length(length: int) -> int:
    """Tokens of a row before sentinels, and the end of a document that goes on in the next row, are added."""
    return length - SENTINELS * most_rearranged(length) - 1


def fill_in_the_middle(
    rows: np.ndarray,
    length: int,
    end: int,
    first_sentinel: int,
    rates: MiddleRates,
    generators: Sequence[np.random.Generator],
) -> Batch:
    """Rows [B, length], each token from those before it, of which some documents are rearranged.

    `first_sentinel` is <PRE>, then come <MID> and <SUF>. A document that a row cuts is in each row one of its own.
    """
    laid = np.zeros((len(rows), length), np.int32)
    most = most_rearranged(length)
    for row, generator in enumerate(generators):
        parts = _documents_of(rows[row], end)
        chosen = np.flatnonzero(generator.random(len(parts)) < rates.rearranged)
        if len(chosen) > most:
            chosen = generator.choice(chosen, most, replace=False)
        for place in chosen:
            parts[place] = rearranged(parts[place], end, first_sentinel, rates.spm, generator)
        whole = np.concatenate(parts) if parts else rows[row, :0]
        laid[row, : len(whole)] = whole
    return causal(laid, end)


def rearranged(
    document: np.ndarray, end: int, first_sentinel: int, spm: float, generator: np.random.Generator
) -> np.ndarray:
    """A document in PSM or SPM form, with an end, cut at two places that are all alike; parts may be empty."""
    text = document[:-1] if document[-1] == end else document
    first, second = np.sort(generator.integers(0, len(text) + 1, 2))
    prefix, middle, suffix = text[:first], text[first:second], text[second:]
    pre, mid, suf = range(first_sentinel, first_sentinel + SENTINELS)
    if generator.random() < spm:
        return np.concatenate([[pre, suf], suffix, [mid], prefix, middle, [end]])
    return np.concatenate([[pre], prefix, [suf], suffix, [mid], middle, [end]])


def _documents_of(row: np.ndarray, end: int) -> list[np.ndarray]:
    segments = documents(row[None], end)[0]
    held = np.count_nonzero(segments)
    return np.split(row[:held], np.flatnonzero(np.diff(segments[:held])) + 1) if held else []
