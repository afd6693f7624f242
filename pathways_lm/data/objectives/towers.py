"""Inputs and targets as models read them: in two towers, or one behind the other in a decoder."""

import numpy as np

from pathways_lm.data.objectives.language import documents, read_before
from pathways_lm.models.batch import Batch


def two_towers(
    inputs: np.ndarray, targets: np.ndarray, input_segments: np.ndarray, target_segments: np.ndarray
) -> Batch:
    """Inputs [B, S] for an encoder and targets [B, L] for a decoder, which sees what has its segment's number."""
    return Batch(
        tokens=read_before(targets, target_segments),
        targets=targets,
        segments=target_segments,
        encoder_tokens=inputs,
        encoder_segments=input_segments,
    )


def one_tower(rows: np.ndarray, segments: np.ndarray, asked: np.ndarray, both_ways: bool) -> Batch:
    """Rows [B, L] whose segments are inputs and then targets. Only targets, where `asked` is true, are scored.

    With `both_ways`, positions that read "beginning" or an input are a prefix that all of their segment see.
    """
    tokens = read_before(rows, segments)
    seen = None
    if both_ways:
        begins = np.ones(rows.shape, bool)
        begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
        after_input = np.zeros(rows.shape, bool)
        after_input[:, 1:] = ~asked[:, :-1]
        seen = (begins | after_input) & (segments != 0)
    return Batch(tokens=tokens, targets=np.where(asked, rows, 0), segments=segments, prefix=seen)


def text_to_text(rows: np.ndarray, end: int, inputs_length: int, both_ways: bool) -> Batch:
    """Packed pairs, each part closed by `end`: what `packing.pack_pairs` makes rows of.

    With `inputs_length` S, rows are inputs [B, S] beside targets [B, L]: two towers. With 0 they are inputs and
    targets in turn, for a decoder. An example is a segment: nothing looks from one into another.
    """
    if inputs_length:
        inputs, targets = rows[:, :inputs_length], rows[:, inputs_length:]
        return two_towers(inputs, targets, documents(inputs, end), documents(targets, end))
    parts = documents(rows, end)  # 1 and 2 are the first example's inputs and targets
    return one_tower(rows, (parts + 1) // 2, (parts > 0) & (parts % 2 == 0), both_ways)
