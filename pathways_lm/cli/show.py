"""A batch as a reader sees it: its rows decoded, document by document, and what of each is asked for."""

import itertools
import textwrap
from collections.abc import Iterator

import numpy as np
from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from pathways_lm.config import DataConfig
from pathways_lm.data.loader import Loader
from pathways_lm.data.vocabulary import Vocabulary
from pathways_lm.models.batch import Batch

GIVEN, ASKED, READ = "given", "asked", "read"


def show_batch(console: Console, loader: Loader, words: "Words", step: int, rows: int) -> None:
    """Prints the first `rows` rows of the batch of a step, counted from 1 as figures are logged."""
    size, first = loader.ramp.batch_size(step - 1), loader.ramp.first_row(step - 1)
    numbers = range(first, first + min(rows, size))
    batch = loader.examples(numbers)
    console.print(f"step {step:,} reads rows {first:,} to {first + size - 1:,}: {words.objective}", highlight=False)
    for place, number in enumerate(numbers):
        row = Batch(*(None if leaf is None else leaf[place] for leaf in batch))
        task = loader.mixture.tasks[loader.mixture.at(number)[0]]
        documents, targets = int(row.segments.max()), np.count_nonzero(row.targets)
        title = f"row {number:,} of {task}: {documents} document{'s' if documents > 1 else ''}, {targets} targets"
        console.print(Rule(title, align="left", style="dim"))
        for label, text in parts(row, words):
            console.print(Text(f"  {label}:", style="bold" if label == ASKED else "dim"))
            console.print(textwrap.indent(text, "    "), markup=False, highlight=False, soft_wrap=True)


class Words:
    """Token ids as text, in which special ones have names."""

    def __init__(self, vocabulary: Vocabulary, config: DataConfig):
        self.objective = config.objective
        self._vocabulary = vocabulary
        self._last = vocabulary.size + config.extra_ids - 1

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
        return "<mask>" if self.objective == "masked" else f"<extra_id_{self._last - token}>"


def parts(row: Batch, words: Words) -> Iterator[tuple[str, str]]:
    """What one row [L] of a batch holds, in the order of reading: a label and a text each."""
    if row.encoder_tokens is not None:
        yield READ, words(row.encoder_tokens[row.encoder_tokens != 0])
        yield ASKED, words(row.targets[row.targets != 0])
    elif words.objective == "masked":
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
