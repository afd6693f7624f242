"""Where text comes from: documents and pairs on every machine that has Python, and the user's own.

A corpus is a list of documents or pairs in an order that depends on names alone, never on the machine.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence

from pathways_lm.config import DataConfig
from pathways_lm.data import pairs, readers
from pathways_lm.data.examples import TRAIN, VALIDATION, Document, Example, Pair
from pathways_lm.data.standard_library import python_docs, python_stdlib
from pathways_lm.errors import ConfigError, DataError, nearest

# From so many files on, a whole file goes to one side of the split; below, single documents do.
_FILES_TO_SPLIT_BY_FILE = 20


DOCUMENTS: Mapping[str, Callable[[], list[Document]]] = {"python_docs": python_docs, "python_stdlib": python_stdlib}
TASKS: Mapping[str, Callable[[], Sequence[Example]]] = {**DOCUMENTS, **pairs.TASKS}
MIXTURES: Mapping[str, tuple[str, ...]] = {
    "python_text": ("python_docs", "python_stdlib"),
    "translation": ("country_names", "language_names"),
    "text_to_text": tuple(pairs.TASKS),
    "exact_answers": ("sorting", "numbers_in_words", "dates"),
}
FILES_TASK = "files"

Splits = dict[str, list[Example]]
"""'train' and 'validation' -> examples."""


def read(config: DataConfig) -> dict[str, Splits]:
    """The documents, or for text_to_text the pairs, of each task that `config` asks for.

    Where the data has its own split for validation, that is used, else `split` makes one. Raises ConfigError for an
    unknown mixture, DataError for what cannot be read, is empty, or is not what the objective needs.
    """
    tasks = _read(config)
    for task, splits in tasks.items():
        for examples in splits.values():
            _check(task, examples, config)
    both = {task: _both(splits, config.validation_fraction) for task, splits in tasks.items()}
    if config.examples:
        for splits in both.values():
            splits[TRAIN] = few(splits[TRAIN], config.examples, config.seed)
    return both


def few(examples: Sequence[Example], count: int, seed: int) -> list[Example]:
    """So many of the examples, in their order, by a hash of the seed and their names: of more, these are a part."""

    def place(example: Example) -> float:
        return _place(f"{seed}/{example.name}#{example.part}")

    chosen = sorted(range(len(examples)), key=lambda number: place(examples[number]))[:count]
    return [examples[number] for number in sorted(chosen)]


def _both(splits: Splits, fraction: float) -> Splits:
    if VALIDATION in splits:
        return splits
    train, validation = split(splits[TRAIN], fraction)
    return {TRAIN: train, VALIDATION: validation}


def _read(config: DataConfig) -> dict[str, Splits]:
    """Task -> splits; one without a validation split is to be split."""
    if config.files:
        return {FILES_TASK: readers.read(config)}
    known = {**{name: (name,) for name in TASKS}, **MIXTURES}
    if config.mixture in known:
        return {task: {TRAIN: list(TASKS[task]())} for task in known[config.mixture]}
    # Late: it takes tensorflow and seconds to know the names of the t5 package.
    from pathways_lm.data import t5_tasks

    names = t5_tasks.names()
    if config.mixture not in names:
        hint = nearest(config.mixture, [*known, *names])
        if hint.startswith("; known"):
            hint = f"{nearest(config.mixture, known)}, and those of the t5 package"
        raise ConfigError(f"data.mixture has no task or mixture '{config.mixture}'{hint}")
    return t5_tasks.read(config.mixture, config.datasets_dir)


def _check(task: str, examples: Sequence[Example], config: DataConfig) -> None:
    """Raises DataError where there is nothing, or not what the objective needs."""
    if not examples:
        raise DataError(f"task '{task}' has no text on this machine; give your own with data.files")
    of_pairs = config.objective == "text_to_text"
    if of_pairs and not isinstance(examples[0], Pair):
        raise DataError(
            f"task '{task}' has documents, and data.objective='text_to_text' needs pairs of inputs and targets; "
            f"use another objective, or a task of pairs: {', '.join(pairs.TASKS)}"
        )
    if not of_pairs and isinstance(examples[0], Pair):
        raise DataError(
            f"task '{task}' has pairs of inputs and targets, and data.objective={config.objective!r} needs documents; "
            f"use data.objective='text_to_text', or a task of documents: {', '.join(DOCUMENTS)}"
        )


def split(documents: Sequence[Example], fraction: float) -> tuple[list[Example], list[Example]]:
    """Training and validation documents, chosen by a hash of their names; both keep their order.

    Whole files go to one side where there are enough of them, else single documents. Adding a file
    moves no other. Raises DataError when there are not two to share out.
    """
    by_file = len({document.name for document in documents}) >= _FILES_TO_SPLIT_BY_FILE

    def key(document: Example) -> str:
        return document.name if by_file else f"{document.name}#{document.part}"

    places = {key(document): _place(key(document)) for document in documents}
    if len(places) < 2:
        raise DataError(f"the corpus is too small: {len(places)} document, and training and validation need one each")
    ranked = sorted(places, key=lambda name: places[name])
    # The lowest is always kept for validation, and the highest never.
    kept = {ranked[0]}.union(name for name in ranked[:-1] if places[name] < fraction)
    train = [document for document in documents if key(document) not in kept]
    validation = [document for document in documents if key(document) in kept]
    return train, validation


def _place(name: str) -> float:
    """A name's place in [0, 1), the same on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:8], "big") / 2**64


def sampling_rates(train: Mapping[str, Sequence[Example]]) -> dict[str, float]:
    """How often each task is drawn from: in proportion to its bytes, so that all documents are seen equally often."""
    sizes = {task: sum(len(document.text.encode()) for document in documents) for task, documents in train.items()}
    return {task: size / sum(sizes.values()) for task, size in sizes.items()}
