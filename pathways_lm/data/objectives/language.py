"""Text as it stands: each token from those before it, and from a prefix that is seen both ways."""

from collections.abc import Sequence

import numpy as np

from pathways_lm.models.batch import Batch


def documents(rows: np.ndarray, end: int) -> np.ndarray:
    """The document of each token, from 1 in each row; 0 is padding."""
    ended = np.cumsum(rows == end, axis=1) - (rows == end)
    return np.where(rows != 0, ended + 1, 0).astype(np.int32)


def read_before(rows: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """What each position reads: the token before it in its segment, and 0 at a beginning."""
    tokens = np.zeros_like(rows)
    tokens[:, 1:] = np.where(segments[:, 1:] == segments[:, :-1], rows[:, :-1], 0)
    return tokens


def causal(rows: np.ndarray, end: int) -> Batch:
    """Each token from those before it in its document; the first from 0, which stands for "beginning"."""
    segments = documents(rows, end)
    return Batch(tokens=read_before(rows, segments), targets=rows, segments=segments)


def prefix(rows: np.ndarray, end: int, generators: Sequence[np.random.Generator]) -> Batch:
    """As `causal`, but the first part of each document is seen both ways and not scored.

    A document of n tokens is split after p of them, 1 <= p < n, all alike. The positions that read "beginning" and
    those p tokens are the prefix; the last of them predicts token p, the first that is scored.
    """
    batch = causal(rows, end)
    seen = np.zeros(rows.shape, bool)
    targets = rows.copy()
    for row, generator in enumerate(generators):
        lengths = np.bincount(batch.segments[row])[1:]
        start = 0
        for length in lengths:
            if length > 1:
                split = int(generator.integers(1, length))
                seen[row, start : start + split + 1] = True
                targets[row, start : start + split] = 0
            start += length
    return batch._replace(targets=targets, prefix=seen)
