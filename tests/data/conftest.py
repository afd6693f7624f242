"""A vocabulary and a corpus of known rows for the tests of this folder."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest

from pathways_lm.data.cache import Corpus
from pathways_lm.data.manifest import Counts, Shard, sha256, shard_name
from pathways_lm.data.shards import write_rows
from pathways_lm.data.vocabulary import Vocabulary, train_vocabulary

LENGTH = 16
ROWS = {"big": 30, "small": 10}
VALIDATION_ROWS = {"big": 5, "small": 2}


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    """512 pieces learned from some of Python's documentation."""
    return Vocabulary(train_vocabulary([topics[name] for name in sorted(topics)[:30]], 512))


@pytest.fixture(scope="session")
def known_corpus(tmp_path_factory, vocabulary) -> Corpus:
    """Two tasks; each row of 'big' is filled with 1000 + its number, of 'small' 2000 +, and 500 more in validation.

    The rows of 'big' lie in three shards."""
    folder = tmp_path_factory.mktemp("known")
    shards = {task: {} for task in ROWS}
    for task, first in (("big", 1000), ("small", 2000)):
        for split, number, start in (("train", ROWS[task], first), ("validation", VALIDATION_ROWS[task], first + 500)):
            rows = [np.full(LENGTH, start + i, np.int32) for i in range(number)]
            parts = [rows[:3], rows[3:20], rows[20:]] if len(rows) == 30 else [rows]
            shards[task][split] = tuple(
                known_shard(folder, shard_name(task, split, place, len(parts)), part)
                for place, part in enumerate(parts)
            )
    return Corpus(
        fingerprint="known",
        folder=folder,
        vocabulary=vocabulary,
        sequence_length=LENGTH,
        shards=shards,
        rates={"big": 0.75, "small": 0.25},
        yardsticks={},
    )


def known_shard(folder: Path, file: str, rows: list[np.ndarray]) -> Shard:
    write_rows(folder / file, rows)
    counts = Counts(documents=1, bytes=1, tokens=len(rows) * LENGTH, sequences=len(rows))
    return Shard(file, "", sha256(folder / file), (folder / file).stat().st_size, counts)


@pytest.fixture(scope="session")
def write_json_lines() -> Callable[..., None]:
    """Writes `files` files of `lines` documents of random English each into a folder."""

    def write(folder: Path, files: int, lines: int, words: int = 40) -> None:
        draw = random.Random(0)
        english = " ".join(topics[name] for name in sorted(topics)[:5]).split()
        folder.mkdir()
        for file in range(files):
            texts = [" ".join(draw.choices(english, k=words)) for _ in range(lines)]
            (folder / f"{file:03}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))

    return write
