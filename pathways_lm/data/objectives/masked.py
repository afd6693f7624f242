"""BERT's masked tokens (arXiv:1810.04805, section 3.1), alone or by whole words."""

from collections.abc import Sequence

import numpy as np

from pathways_lm.data.objectives.language import documents
from pathways_lm.models.batch import Batch

MASKED, REPLACED_BY_MASK, REPLACED_AT_RANDOM = 0.15, 0.8, 0.1

Edges = tuple[np.ndarray, np.ndarray]
"""Of each piece, bool: whether it begins inside a word, and whether it ends inside one."""


def masked(
    rows: np.ndarray,
    end: int,
    mask: int,
    generators: Sequence[np.random.Generator],
    word_edges: Edges | None = None,
) -> Batch:
    """Of 15% of the tokens, 80% become `mask`, 10% another token, 10% stay; all are asked for.

    `mask` is also the number of pieces of the vocabulary, from which the other tokens are drawn. With `word_edges`,
    words are chosen, and all of a word's tokens are asked for.
    """
    tokens, targets = rows.copy(), np.zeros_like(rows)
    for row, generator in enumerate(generators):
        size = np.count_nonzero(rows[row])
        wanted = round(MASKED * size)
        if word_edges is None:
            chosen = generator.choice(size, wanted, replace=False)
        else:
            chosen = _whole_words(word_starts(rows[row, :size], word_edges), wanted, generator)
        targets[row, chosen] = rows[row, chosen]
        lot = generator.random(len(chosen))
        tokens[row, chosen[lot < REPLACED_BY_MASK]] = mask
        others = chosen[(lot >= REPLACED_BY_MASK) & (lot < REPLACED_BY_MASK + REPLACED_AT_RANDOM)]
        tokens[row, others] = generator.integers(1, mask, len(others))
    return Batch(tokens=tokens, targets=targets, segments=documents(rows, end))


def word_starts(tokens: np.ndarray, word_edges: Edges) -> np.ndarray:
    """Which tokens begin a word, bool: all but those that go on with the word that the token before is inside of."""
    begins_inside, ends_inside = word_edges
    starts = np.ones(len(tokens), bool)
    starts[1:] = ~(begins_inside[tokens[1:]] & ends_inside[tokens[:-1]])
    return starts


def _whole_words(starts: np.ndarray, wanted: int, generator: np.random.Generator) -> np.ndarray:
    """Places of words drawn in turn, each taken that does not make them more than `wanted`."""
    bounds = np.append(np.flatnonzero(starts), len(starts))
    chosen: list[int] = []
    for word in generator.permutation(len(bounds) - 1):
        if len(chosen) == wanted:
            break
        if len(chosen) + bounds[word + 1] - bounds[word] <= wanted:
            chosen.extend(range(bounds[word], bounds[word + 1]))
    return np.array(chosen, np.int64)
