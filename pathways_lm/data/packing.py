"""Documents and pairs of any length into rows of one length.

Documents are laid end to end, each closed by its end-of-document token, and cut at every `length` tokens wherever that
falls (PaLM, arXiv:2204.02311, section 5, "Sequence length"): nothing is padded but the end of a validation set. Pairs
are laid whole, as many into a row as it holds, and padded.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from pathways_lm.data.vocabulary import PAD_ID

_log = logging.getLogger(__name__)

Row = np.ndarray
Tokens = Sequence[int] | np.ndarray


def pack(documents: Iterable[Tokens], length: int, *, keep_tail: bool) -> Iterator[Row]:
    """Sequences, int32 [length], of the documents' tokens in order.

    Args:
      documents: token ids, each document's ending in the end-of-document token.
      length: tokens of a sequence.
      keep_tail: the tokens left at the end fill no sequence. True pads them (validation: each token is
        scored once), False drops them (training).
    """
    rest = np.empty(0, np.int32)
    for tokens in documents:
        rest = np.concatenate([rest, np.asarray(tokens, np.int32)])
        whole = rest.size // length * length
        yield from rest[:whole].reshape(-1, length)
        rest = rest[whole:]
    if keep_tail and rest.size:
        yield np.pad(rest, (0, length - rest.size), constant_values=PAD_ID)


def pack_pairs(pairs: Iterable[tuple[Tokens, Tokens]], length: int, inputs_length: int) -> Iterator[Row]:
    """Rows, int32 [length], of whole pairs in order; the next row begins where a pair no longer fits.

    Args:
      pairs: token ids of inputs and of targets, each ending in the end-of-document token.
      length: tokens of a row.
      inputs_length: the first so many tokens of a row hold inputs and the others targets, for two towers. 0: each
        pair's inputs and targets stand one behind the other, in one tower.

    A pair that is longer than a row is trimmed to fit, its last tokens kept as ends; how many were is logged.
    """
    both = (inputs_length, length - inputs_length)
    widths = both if inputs_length else (length,)
    parts: list[list[np.ndarray]] = [[] for _ in widths]
    trimmed = count = 0
    for pair in pairs:
        inputs, targets = (np.asarray(tokens, np.int32) for tokens in pair)
        rooms = both if inputs_length else _shares(len(inputs), len(targets), length)
        whole = len(inputs) + len(targets)
        inputs, targets = _trim(inputs, rooms[0]), _trim(targets, rooms[1])
        trimmed += len(inputs) + len(targets) < whole
        count += 1
        pieces = (inputs, targets) if inputs_length else (np.concatenate([inputs, targets]),)
        held = [sum(map(len, part)) for part in parts]
        if any(had + len(piece) > width for had, piece, width in zip(held, pieces, widths, strict=True)):
            yield _row(parts, widths)
            parts = [[] for _ in widths]
        for part, piece in zip(parts, pieces, strict=True):
            part.append(piece)
    if count:
        yield _row(parts, widths)
    if trimmed:
        where = f"{inputs_length} + {length - inputs_length}" if inputs_length else str(length)
        _log.warning("%d of %d pairs are longer than rows of %s tokens, and were trimmed", trimmed, count, where)


def unpack_pairs(row: Row, end: int, inputs_length: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The pairs of a row that `pack_pairs` made, in order, without the ends."""
    if inputs_length:
        return list(zip(_parts(row[:inputs_length], end), _parts(row[inputs_length:], end), strict=True))
    parts = _parts(row, end)
    return list(zip(parts[::2], parts[1::2], strict=True))


def _parts(tokens: np.ndarray, end: int) -> list[np.ndarray]:
    """What stands before each end."""
    return [part[part != end] for part in np.split(tokens, np.flatnonzero(tokens == end) + 1)[:-1]]


def _shares(inputs: int, targets: int, length: int) -> tuple[int, int]:
    """Tokens of a row for each part of a pair that is too long: half, and what the other does not need."""
    for_targets = min(targets, length - min(inputs, length // 2))
    return length - for_targets, for_targets


def _trim(tokens: np.ndarray, room: int) -> np.ndarray:
    return tokens if len(tokens) <= room else np.append(tokens[: room - 1], tokens[-1])


def _row(parts: list[list[np.ndarray]], widths: Sequence[int]) -> Row:
    """The parts behind one another, each padded to its width."""
    row = np.full(sum(widths), PAD_ID, np.int32)
    start = 0
    for part, width in zip(parts, widths, strict=True):
        laid = np.concatenate(part)
        row[start : start + len(laid)] = laid
        start += width
    return row
