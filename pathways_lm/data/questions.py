"""Held-out pairs as text, read back from a packed corpus."""

import numpy as np

from pathways_lm.config import DataConfig
from pathways_lm.data.cache import VALIDATION, Corpus
from pathways_lm.data.loader import read_rows
from pathways_lm.data.objectives import inputs_length
from pathways_lm.data.packing import unpack_pairs

Question = tuple[str, str]
"""Inputs, and the targets that they ask for."""


def held_out(corpus: Corpus, config: DataConfig, most: int) -> dict[str, list[Question]]:
    """Up to `most` pairs of each task's validation split, spread evenly over it, in order.

    The corpus is of text_to_text. A pair that was trimmed to fit a row is asked as it was trimmed.
    """
    end, width, decode = corpus.vocabulary.eod_id, inputs_length(config), corpus.vocabulary.decode
    found = {}
    for task in corpus.counts:
        pairs = [pair for row in read_rows(corpus, task, VALIDATION) for pair in unpack_pairs(row, end, width)]
        chosen = np.unique(np.linspace(0, len(pairs) - 1, min(most, len(pairs))).round().astype(int))
        found[task] = [(decode(pairs[place][0].tolist()), decode(pairs[place][1].tolist())) for place in chosen]
    return found
