"""Pairs from packing to batches: by hand, against seqio's packing, and what must be recoverable."""

import logging

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pathways_lm.data.objectives.towers import text_to_text
from pathways_lm.data.packing import pack_pairs, unpack_pairs

END = 1
PAIRS = st.lists(
    st.tuples(
        st.lists(st.integers(2, 99), max_size=12).map(lambda t: [*t, END]),
        st.lists(st.integers(2, 99), max_size=7).map(lambda t: [*t, END]),
    ),
    max_size=12,
)


def rows_of(pairs, length, inputs_length):
    rows = list(pack_pairs(pairs, length, inputs_length))
    assert all(row.dtype == np.int32 and row.shape == (length,) for row in rows)
    return np.reshape(rows, (-1, length)).astype(np.int32)


BY_HAND = [([5, 6, END], [7, END]), ([8, END], [9, 10, END]), ([11, 12, 13, END], [14, END])]


def test_two_towers_by_hand():
    rows = rows_of(BY_HAND, 6 + 5, 6)
    assert rows.tolist() == [[5, 6, 1, 8, 1, 0, 7, 1, 9, 10, 1], [11, 12, 13, 1, 0, 0, 14, 1, 0, 0, 0]]
    batch = text_to_text(rows, END, 6, both_ways=False)
    assert batch.encoder_tokens.tolist() == [[5, 6, 1, 8, 1, 0], [11, 12, 13, 1, 0, 0]]
    assert batch.encoder_segments.tolist() == [[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 0, 0]]
    assert batch.targets.tolist() == [[7, 1, 9, 10, 1], [14, 1, 0, 0, 0]]
    assert batch.tokens.tolist() == [[0, 7, 0, 9, 10], [0, 14, 0, 0, 0]]
    assert batch.segments.tolist() == [[1, 1, 2, 2, 2], [1, 1, 0, 0, 0]]
    assert batch.prefix is None


@pytest.mark.parametrize("both_ways", [False, True])
def test_one_tower_by_hand(both_ways):
    rows = rows_of(BY_HAND, 12, 0)
    assert rows.tolist() == [[5, 6, 1, 7, 1, 8, 1, 9, 10, 1, 0, 0], [11, 12, 13, 1, 14, 1, 0, 0, 0, 0, 0, 0]]
    batch = text_to_text(rows, END, 0, both_ways)
    assert batch.tokens[0].tolist() == [0, 5, 6, 1, 7, 0, 8, 1, 9, 10, 0, 0]
    assert batch.targets[0].tolist() == [0, 0, 0, 7, 1, 0, 0, 9, 10, 1, 0, 0]
    assert batch.segments[0].tolist() == [1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 0, 0]
    if both_ways:
        # What has read nothing but inputs: the last of them says the first target.
        assert batch.prefix[0].astype(int).tolist() == [1, 1, 1, 1, 0, 1, 1, 1, 0, 0, 0, 0]
    else:
        assert batch.prefix is None


def trimmed_to(tokens, room):
    return tokens if len(tokens) <= room else [*tokens[: room - 1], END]


@settings(max_examples=200)
@given(PAIRS, st.integers(3, 20), st.integers(3, 12))
def test_two_towers_hold_every_pair_once(pairs, inputs_length, targets_length):
    """In order, whole, or cut to a tower's length and still closed; inputs and targets have one segment."""
    rows = rows_of(pairs, inputs_length + targets_length, inputs_length)
    batch = text_to_text(rows, END, inputs_length, both_ways=False)
    found = []
    for row in range(len(rows)):
        for segment in range(1, batch.segments[row].max() + 1):
            inputs = batch.encoder_tokens[row][batch.encoder_segments[row] == segment]
            places = batch.segments[row] == segment
            targets = batch.targets[row][places]
            assert batch.tokens[row][places].tolist() == [0, *targets[:-1]]
            found.append((inputs.tolist(), targets.tolist()))
        assert batch.segments[row].max() == batch.encoder_segments[row].max()
    assert found == [(trimmed_to(a, inputs_length), trimmed_to(b, targets_length)) for a, b in pairs]


@settings(max_examples=200)
@given(PAIRS, st.integers(4, 30), st.booleans())
def test_one_tower_holds_every_pair_once(pairs, length, both_ways):
    rows = rows_of(pairs, length, 0)
    batch = text_to_text(rows, END, 0, both_ways)
    found = []
    for row in range(len(rows)):
        for segment in range(1, batch.segments[row].max() + 1):
            places = np.flatnonzero(batch.segments[row] == segment)
            asked = batch.targets[row][places]
            split = np.count_nonzero(asked == 0)
            read = batch.tokens[row][places]
            assert read[0] == 0
            inputs = read[1 : split + 1].tolist()
            assert read[split + 1 :].tolist() == asked[split:-1].tolist()
            if both_ways:
                assert batch.prefix[row][places].tolist() == [True] * (split + 1) + [False] * (len(places) - split - 1)
            found.append((inputs, asked[split:].tolist()))
    assert len(found) == len(pairs)
    for (inputs, targets), (whole_inputs, whole_targets) in zip(found, pairs, strict=True):
        assert inputs == trimmed_to(whole_inputs, len(inputs)) and targets == trimmed_to(whole_targets, len(targets))
        if len(whole_inputs) + len(whole_targets) <= length:
            assert (inputs, targets) == (whole_inputs, whole_targets)
        else:
            assert len(inputs) + len(targets) == length
            # Neither is cut for the other's sake below half of the row.
            assert len(inputs) >= min(len(whole_inputs), length // 2)
            assert len(targets) >= min(len(whole_targets), length - length // 2)


@settings(max_examples=200)
@given(PAIRS, st.sampled_from([(20, 0), (20, 13), (9, 0), (9, 5)]))
def test_what_is_packed_is_unpacked(pairs, lengths):
    """All pairs in order, those that were too long as they were trimmed: without their ends."""
    length, inputs_length = lengths
    found = [pair for row in rows_of(pairs, length, inputs_length) for pair in unpack_pairs(row, END, inputs_length)]
    assert len(found) == len(pairs)
    for (inputs, targets), (whole_inputs, whole_targets) in zip(found, pairs, strict=True):
        assert inputs.tolist() == whole_inputs[: len(inputs)] and targets.tolist() == whole_targets[: len(targets)]
        assert END not in inputs and END not in targets
        if inputs_length:
            assert len(inputs) == min(len(whole_inputs), inputs_length) - 1
            assert len(targets) == min(len(whole_targets), length - inputs_length) - 1
        else:
            assert len(inputs) + len(targets) + 2 == min(len(whole_inputs) + len(whole_targets), length)


def test_what_is_trimmed_is_told(caplog):
    pairs = [([2] * 9 + [END], [3, END]), ([4, END], [5, END])]
    with caplog.at_level(logging.WARNING):
        rows_of(pairs, 8, 5)
    assert caplog.messages == ["1 of 2 pairs are longer than rows of 5 + 3 tokens, and were trimmed"]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        rows_of(pairs[1:], 8, 5)
    assert caplog.messages == []


@settings(max_examples=20)
@given(PAIRS.filter(lambda pairs: len(pairs) > 1))
def test_rows_are_those_of_seqio(pairs):
    """seqio's `trim_and_pack_dataset` also begins a row where a pair no longer fits."""
    from pathways_lm.data.quiet_tensorflow import seqio, tf

    lengths = {"inputs": 20, "targets": 12}
    dataset = tf.data.Dataset.from_generator(
        lambda: ({"inputs": a, "targets": b} for a, b in pairs),
        output_signature={name: tf.TensorSpec([None], tf.int32) for name in lengths},
    )
    theirs = list(seqio.utils.trim_and_pack_dataset(dataset, lengths, use_custom_ops=False).as_numpy_iterator())
    rows = rows_of(pairs, 32, 20)
    batch = text_to_text(rows, END, 20, both_ways=False)
    assert len(theirs) == len(rows)
    for row, their in enumerate(theirs):
        np.testing.assert_array_equal(batch.encoder_tokens[row], their["inputs"])
        np.testing.assert_array_equal(batch.targets[row], their["targets"])
        np.testing.assert_array_equal(batch.encoder_segments[row], their["inputs_segment_ids"])
        np.testing.assert_array_equal(batch.segments[row], their["targets_segment_ids"])


@pytest.mark.parametrize("shape", ["encoder_decoder", "decoder"])
@pytest.mark.parametrize("both_ways", [False, True])
def test_nothing_looks_into_another_example(make, draw, shape, both_ways):
    """A model's logits for an example do not change with the example packed beside it."""
    changes = {"shape": shape, "block": "pre_norm", "vocab_size": 264}
    if shape == "encoder_decoder":
        changes |= {"positions": "relative"}
    model = make(**changes)
    params = draw(model)
    inputs_length = 8 if shape == "encoder_decoder" else 0
    pair, others = ([5, 6, 7, END], [8, 9, END]), [([20, 21, END], [22, END]), ([30, 31, END], [33, END])]

    def logits(other):
        batch = text_to_text(rows_of([pair, other], 16, inputs_length), END, inputs_length, both_ways)
        placed = jax.device_put(batch, model.rules("batch", None))
        outputs = np.asarray(jax.jit(lambda params, batch: model.bind(params)(batch).logits_BLV)(params, placed))
        return outputs[0][batch.segments[0] == 1], outputs[0][batch.segments[0] == 2]

    (first, second), (first_again, second_again) = map(logits, others)
    np.testing.assert_array_equal(first, first_again)
    assert np.abs(second - second_again).max() > 1e-3
