"""A batch as a reader sees it: its rows decoded, document by document, and what of each is asked for."""

import itertools
from collections.abc import Iterator

import grain
import numpy as np
from rich.console import Console
from rich.padding import Padding
from rich.rule import Rule
from rich.text import Text

from pathways_lm.config import DataConfig
from pathways_lm.data.cache import Corpus
from pathways_lm.data.loader import Loader
from pathways_lm.models.batch import Batch

GIVEN, ASKED, READ = "given", "asked", "read"


def show_batch(console: Console, config: DataConfig, corpus: Corpus, loader: Loader, step: int, rows: int) -> None:
    """Prints the first `rows` rows of the batch of `step`."""
    first = step * config.batch_size
    last = first + min(rows, config.batch_size)
    batch = loader.examples(first, last)
    said = f"step {step:,}: rows {first:,} to {first + config.batch_size - 1:,}; {config.objective}"
    console.print(said, highlight=False)
    words = Words(corpus, config)
    for place, number in enumerate(range(first, last)):
        row = Batch(*(None if leaf is None else leaf[place] for leaf in batch))
        documents = int(row.segments.max()) if row.segments is not None else 1
        task = task_of(corpus, number)
        title = f"row {number:,}, task {task}, {documents} documents, {np.count_nonzero(row.targets)} targets"
        console.print(Rule(title, align="left", style="dim"))
        for label, text in parts(row, words, config.objective):
            console.print(Text(f"  {label}:", style="bold" if label == ASKED else "dim"))
            console.print(Padding(Text(text, overflow="fold"), (0, 0, 0, 4)))


def task_of(corpus: Corpus, row: int) -> str:
    """The task that a row of the training stream is drawn from."""
    names = [grain.MapDataset.source([task]).repeat() for task in corpus.rates]
    task: str = grain.MapDataset.mix(names, list(corpus.rates.values()))[row]
    return task


class Words:
    """Token ids as text, in which special ones have names."""

    def __init__(self, corpus: Corpus, config: DataConfig):
        self._vocabulary, self._objective = corpus.vocabulary, config.objective
        self._last = corpus.vocabulary.size + config.extra_ids - 1

    def __call__(self, ids: np.ndarray) -> str:
        """The text of token ids [tokens]."""
        runs = itertools.groupby(ids.tolist(), key=self._special)
        return "".join("".join(map(self._name, run)) if special else self._decode(run) for special, run in runs)

    def _special(self, token: int) -> bool:
        return token in (0, self._vocabulary.eod_id) or token >= self._vocabulary.size

    def _decode(self, run: Iterator[int]) -> str:
        return self._vocabulary.decode(run)

    def _name(self, token: int) -> str:
        if token < self._vocabulary.size:
            return "<pad>" if token == 0 else "<eod>"
        return "<mask>" if self._objective == "masked" else f"<extra_id_{self._last - token}>"


def parts(row: Batch, words: Words, objective: str) -> Iterator[tuple[str, str]]:
    """What one row [L] of a batch holds, in the order of reading: a label and a text each."""
    if row.encoder_tokens is not None:
        yield READ, words(row.encoder_tokens[row.encoder_tokens != 0])
        yield ASKED, words(row.targets[row.targets != 0])
    elif objective == "masked":
        yield READ, words(row.tokens[row.segments != 0])
        yield ASKED, ", ".join(f"{place}: {words(row.targets[[place]])!r}" for place in np.flatnonzero(row.targets))
    else:
        for document in range(1, int(row.segments.max()) + 1):
            yield from _runs(row.tokens[row.segments == document], row.targets[row.segments == document], words)


def _runs(tokens: np.ndarray, targets: np.ndarray, words: Words) -> Iterator[tuple[str, str]]:
    """A decoder's document, cut where what is asked for begins and ends. What is not asked for is read one later."""
    text = np.where(targets != 0, targets, np.append(tokens[1:], 0))
    cuts = [0, *(np.flatnonzero(np.diff(targets != 0)) + 1).tolist(), len(text)]
    for start, stop in itertools.pairwise(cuts):
        yield (ASKED if targets[start] else GIVEN), words(text[start:stop])
