"""What is predicted: packed rows of tokens into what a model reads and should say.

The noise of a row is a function of (seed, number of the row) alone, so that a batch is the same on any number of hosts.
A row holds whole or cut documents, each closed by its end-of-document token, and padding (0) after the last.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import jax
import numpy as np

from pathways_lm.config import DataConfig
from pathways_lm.errors import ConfigError
from pathways_lm.models.batch import Batch
from pathways_lm.sharding import Rules

Objective = Callable[[np.ndarray, Sequence[int]], Batch]
"""From int32 rows [B, raw length] and their numbers to a batch of numpy arrays."""

# T5 (arXiv:1910.10683, section 3.1.4) and BERT (arXiv:1810.04805, section 3.1).
NOISE, MEAN_SPAN = 0.15, 3.0
MASKED, REPLACED_BY_MASK, REPLACED_AT_RANDOM = 0.15, 0.8, 0.1


class Vocabulary(Protocol):
    """What objectives need of a vocabulary."""

    @property
    def size(self) -> int: ...
    @property
    def eod_id(self) -> int: ...


def make_objective(config: DataConfig, vocabulary: Vocabulary) -> Objective:
    """The objective that `config` names. Raises ConfigError where it needs more extra ids than there are."""
    first_extra, last_extra = vocabulary.size, vocabulary.size + config.extra_ids - 1
    needed = extra_ids_needed(config)
    if config.extra_ids < needed:
        raise ConfigError(
            f"data.extra_ids={config.extra_ids} is too few: data.objective={config.objective!r} with "
            f"data.sequence_length={config.sequence_length} needs {needed}"
        )
    end, seed = vocabulary.eod_id, config.seed
    makers: dict[str, Objective] = {
        "causal": lambda rows, _: causal(rows, end),
        "prefix": lambda rows, numbers: prefix(rows, end, _generators(seed, numbers)),
        "span_corruption": lambda rows, numbers: span_corruption(
            rows, config.sequence_length, end, last_extra, _generators(seed, numbers)
        ),
        "masked": lambda rows, numbers: masked(rows, end, first_extra, _generators(seed, numbers)),
    }
    return makers[config.objective]


def raw_length(config: DataConfig) -> int:
    """Tokens of a packed row. With span corruption, so many that the encoder reads `sequence_length`."""
    if config.objective != "span_corruption":
        return config.sequence_length
    raw = config.sequence_length
    while corrupted_lengths(raw + 1)[0] <= config.sequence_length:
        raw += 1
    return raw


def extra_ids_needed(config: DataConfig) -> int:
    """One for a mask, one for each span that is dropped."""
    spans = _noise_and_spans(raw_length(config))[1]
    return {"masked": 1, "span_corruption": spans}.get(config.objective, 0)


def corrupted_lengths(raw: int) -> tuple[int, int]:
    """What span corruption makes of `raw` tokens: lengths of the encoder's input and of the targets, ends included."""
    noise, spans = _noise_and_spans(raw)
    return raw - noise + spans + 1, noise + spans + 1


def abstract_batch(config: DataConfig) -> Batch:
    """What a batch looks like, without a corpus or a vocabulary: shapes and types of `make_objective`'s arrays."""

    def rows(length: int, dtype: type = np.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((config.batch_size, length), dtype)

    read = rows(config.sequence_length)
    if config.objective == "span_corruption":
        asked = rows(corrupted_lengths(raw_length(config))[1])
        return Batch(asked, asked, asked, encoder_tokens=read, encoder_segments=read)
    seen = rows(config.sequence_length, np.bool_) if config.objective == "prefix" else None
    return Batch(read, read, read, prefix=seen)


def check_lengths(config: DataConfig, rules: Rules) -> None:
    """Raises ConfigError where the devices that share a sequence do not divide its length.

    Each has two chunks of it (`kernels.zigzag`); what lies between blocks may be cut further.
    """
    context, between = rules.parts("length"), rules.parts("residual_length")
    chunks = 2 * context if context > 1 else 1
    needed = math.lcm(chunks, between)

    def uneven(length: int) -> int | None:
        """Of what is read and the targets, the length that is not divided."""
        if length % needed or config.objective != "span_corruption":
            return length if length % needed else None
        targets = corrupted_lengths(raw_length(replace(config, sequence_length=length)))[1]
        return targets if targets % needed else None

    found = uneven(config.sequence_length)
    if found is None:
        return
    below = next((length for length in range(config.sequence_length, 1, -1) if uneven(length) is None), None)
    above = next(length for length in itertools.count(config.sequence_length) if uneven(length) is None)
    fits = " or ".join(str(length) for length in (below, above) if length)
    cutting = [axis for axis in rules.axes("residual_length") if rules.mesh.shape[axis] > 1]
    axes = " x ".join(f"mesh.{axis}={rules.mesh.shape[axis]}" for axis in cutting)
    by = f"2 x mesh.{rules.axes('length')[0]}={context}" if found % chunks else axes
    what = "is" if found == config.sequence_length else f"makes targets of {found} tokens, which are"
    raise ConfigError(f"data.sequence_length={config.sequence_length} {what} not divisible by {by}; {fits} would be")


def documents(rows: np.ndarray, end: int) -> np.ndarray:
    """The document of each token, from 1 in each row; 0 is padding."""
    ended = np.cumsum(rows == end, axis=1) - (rows == end)
    return np.where(rows != 0, ended + 1, 0).astype(np.int32)


def causal(rows: np.ndarray, end: int) -> Batch:
    """Each token from those before it in its document; the first from 0, which stands for "beginning"."""
    segments = documents(rows, end)
    tokens = np.zeros_like(rows)
    tokens[:, 1:] = np.where(segments[:, 1:] == segments[:, :-1], rows[:, :-1], 0)
    return Batch(tokens=tokens, targets=rows, segments=segments)


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


def span_corruption(
    rows: np.ndarray, length: int, end: int, first_sentinel: int, generators: Sequence[np.random.Generator]
) -> Batch:
    """T5's objective: spans of the row are replaced by sentinels, and asked for one after the other.

    A row is taken as one text, whatever documents it holds. The encoder reads what is kept, a sentinel in place of
    each span, and `end`; the targets are each sentinel with its span behind it, and `end`. Sentinel i has id
    `first_sentinel` - i. A padded row is corrupted in proportion to what it holds.
    """
    target_length = corrupted_lengths(rows.shape[1])[1]
    inputs = np.zeros((len(rows), length), np.int32)
    targets = np.zeros((len(rows), target_length), np.int32)
    for row, generator in enumerate(generators):
        text = rows[row, : np.count_nonzero(rows[row])]
        if len(text) < 2:
            continue
        noise = noise_mask(len(text), generator)
        kept = _with_sentinels(text, noise, first_sentinel)
        asked = _with_sentinels(text, ~noise, first_sentinel, spans_begin=noise)
        inputs[row, : len(kept) + 1] = [*kept, end]
        targets[row, : len(asked) + 1] = [*asked, end]
    tokens = np.zeros_like(targets)
    tokens[:, 1:] = targets[:, :-1]
    return Batch(
        tokens=tokens,
        targets=targets,
        segments=(targets != 0).astype(np.int32),
        encoder_tokens=inputs,
        encoder_segments=(inputs != 0).astype(np.int32),
    )


def noise_mask(length: int, generator: np.random.Generator) -> np.ndarray:
    """Which of `length` tokens are dropped: spans of noise and of text in turn, text first, all cuts alike."""
    noise, spans = _noise_and_spans(length)
    dropped = _partition(noise, spans, generator)
    kept = _partition(length - noise, spans, generator)
    runs = np.stack([kept, dropped], axis=1).ravel()
    return np.repeat(np.tile([False, True], spans), runs)


def masked(rows: np.ndarray, end: int, mask: int, generators: Sequence[np.random.Generator]) -> Batch:
    """BERT's objective: of 15% of the tokens, 80% become `mask`, 10% another token, 10% stay; all are asked for.

    `mask` is also the number of pieces of the vocabulary, from which the other tokens are drawn.
    """
    tokens, targets = rows.copy(), np.zeros_like(rows)
    for row, generator in enumerate(generators):
        size = np.count_nonzero(rows[row])
        chosen = generator.choice(size, round(MASKED * size), replace=False)
        targets[row, chosen] = rows[row, chosen]
        lot = generator.random(len(chosen))
        tokens[row, chosen[lot < REPLACED_BY_MASK]] = mask
        others = chosen[(lot >= REPLACED_BY_MASK) & (lot < REPLACED_BY_MASK + REPLACED_AT_RANDOM)]
        tokens[row, others] = generator.integers(1, mask, len(others))
    return Batch(tokens=tokens, targets=targets, segments=documents(rows, end))


def _generators(seed: int, numbers: Sequence[int]) -> list[np.random.Generator]:
    return [np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, number]))) for number in numbers]


def _noise_and_spans(length: int) -> tuple[int, int]:
    noise = min(max(round(length * NOISE), 1), length - 1)
    return noise, min(max(round(noise / MEAN_SPAN), 1), length - noise)


def _partition(total: int, parts: int, generator: np.random.Generator) -> np.ndarray:
    """`parts` whole numbers of at least 1 that add up to `total`, each such list as likely as any other."""
    cuts = np.sort(generator.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff([0, *cuts, total])


def _with_sentinels(
    text: np.ndarray, dropped: np.ndarray, first_sentinel: int, spans_begin: np.ndarray | None = None
) -> np.ndarray:
    """`text` with a sentinel for each run of dropped tokens, or in front of each run of `spans_begin`."""
    marked = dropped if spans_begin is None else spans_begin
    begins = marked & ~np.concatenate([[False], marked[:-1]])
    sentinels = first_sentinel - (np.cumsum(begins) - 1)
    if spans_begin is None:
        return np.where(begins, sentinels, text)[~dropped | begins]
    pairs = np.stack([sentinels, text], axis=1).ravel()
    return pairs[np.stack([begins, ~dropped], axis=1).ravel()]
