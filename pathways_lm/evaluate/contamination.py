"""Evaluation texts that a model may have trained on, found by the n-grams they share with its corpus."""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import grain
import numpy as np

from pathways_lm.data.cache import Corpus
from pathways_lm.data.examples import TRAIN
from pathways_lm.data.vocabulary import PAD_ID
from pathways_lm.errors import DataError

_WORD = re.compile(r"\w+")
GPT3, PALM = (13, 0.0), (8, 0.7)
"""n, and the share of an example's n-grams beyond or from which it counts as seen: GPT-3 (arXiv:2005.14165, appendix C)
takes the first shared one, PaLM (arXiv:2204.02311, section 8) seven in ten."""


class Overlap(NamedTuple):
    """Of one evaluation text."""

    ngrams: int
    """Different ones that it has. A text shorter than n counts as one."""
    seen: int
    """Of those, how many the corpus has."""

    @property
    def share(self) -> float:
        return self.seen / self.ngrams if self.ngrams else 0.0

    def contaminated(self, share: float) -> bool:
        """Whether anything was seen and it is at least that share."""
        return self.seen > 0 and self.share >= share


def normal_words(text: str) -> list[str]:
    """Lower case, without punctuation: how GPT-3's appendix C compares."""
    return _WORD.findall(text.lower())


def overlaps(texts: Sequence[str], corpus: Iterable[str], n: int = 13) -> list[Overlap]:
    """What each text shares with the documents of a corpus, which is gone through once and not held.

    Args:
      n: words of an n-gram. A text that has fewer is looked for as a whole.

    Raises DataError for n below 1.
    """
    if n < 1:
        raise DataError(f"n-grams of {n} words: must be at least 1")
    wanted = [_ngrams(normal_words(text), n) for text in texts]
    lengths = sorted({len(ngram) for ngrams in wanted for ngram in ngrams})
    every = set().union(*wanted)
    seen: set[tuple[str, ...]] = set()
    for document in corpus:
        found = normal_words(document)
        for length in lengths:
            runs = zip(*(found[start:] for start in range(length)), strict=False)
            seen.update(run for run in runs if run in every)
    return [Overlap(len(ngrams), len(ngrams & seen)) for ngrams in wanted]


def _ngrams(words: Sequence[str], n: int) -> set[tuple[str, ...]]:
    if not words:
        return set()
    return {tuple(words[start : start + n]) for start in range(max(len(words) - n + 1, 1))}


def training_texts(corpus: Corpus) -> Iterator[str]:
    """The documents of a packed corpus that a run trains on. One cut at the end of a row goes on in the next.

    Of pairs, inputs and targets are texts of their own.
    """
    for file in (file for task in corpus.shards for file in corpus.files(task, TRAIN)):
        rest: list[int] = []
        # A shard is packed by itself, and what was left at its end is in no row.
        for record in grain.sources.ArrayRecordDataSource([file]):
            row = np.frombuffer(record, "<i4")
            ids = np.array([*rest, *row[row != PAD_ID]])
            ends = [-1, *np.flatnonzero(ids == corpus.vocabulary.eod_id).tolist()]
            yield from (corpus.vocabulary.decode(ids[before + 1 : end].tolist()) for before, end in pairwise(ends))
            rest = ids[ends[-1] + 1 :].tolist()
        if rest:
            yield corpus.vocabulary.decode(rest)
