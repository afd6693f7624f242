"""Objectives: examples by hand, what must be recoverable from a batch, and T5's own lengths."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pathways_lm.config import DataConfig, MeshConfig
from pathways_lm.data.objectives import abstract_batch, check_lengths, extra_ids_needed, make_objective, raw_length
from pathways_lm.data.objectives.denoise import T5_DENOISERS, Ids, denoise_two_towers
from pathways_lm.data.objectives.language import causal, prefix
from pathways_lm.data.objectives.masked import masked
from pathways_lm.data.objectives.noise import T5_NOISE, noise_mask
from pathways_lm.errors import ConfigError
from pathways_lm.mesh import abstract_mesh
from pathways_lm.sharding import rules_of

END = 9
FIRST_SENTINEL = 99


def generators(*seeds):
    return [np.random.default_rng(seed) for seed in seeds]


def rows_of(documents, length):
    """One row: documents, each closed by END, and padding."""
    row = [token for document in documents for token in (*document, END)]
    return np.array([row[:length] + [0] * (length - len(row))], np.int32)


@pytest.mark.parametrize(
    ("length", "mesh", "message"),
    [
        (
            512,
            {"context": 4},
            "=512 makes targets of 114 tokens, which are not divisible by 2 x mesh.context=4; 464 or 536 would be",
        ),
        (510, {"context": 2}, "=510 is not divisible by 2 x mesh.context=2; 500 or 516 would be"),
        (
            511,
            {"tensor": 2, "rules": "sequence_parallel"},
            "=511 is not divisible by mesh.tensor=2; 510 or 512 would be",
        ),
    ],
)
def test_lengths_that_devices_do_not_divide(length, mesh, message):
    """T5's 512 tokens ask for 114 (arXiv:1910.10683, section 3.1.4); what is told to fit, does."""
    config = MeshConfig(data=1, **mesh)
    rules = rules_of(config, abstract_mesh(config, config.context * config.tensor))
    with pytest.raises(ConfigError) as caught:
        check_lengths(DataConfig(objective="span_corruption", sequence_length=length), rules)
    assert str(caught.value) == f"data.sequence_length{message}"
    for fits in map(int, re.findall(r"(\d+) or (\d+) would", message)[0]):
        check_lengths(DataConfig(objective="span_corruption", sequence_length=fits), rules)


def test_causal():
    """The first token of each document is predicted from 0; padding is neither read nor asked for."""
    batch = causal(rows_of([[1, 2], [3]], 7), END)
    assert batch.targets.tolist() == [[1, 2, 9, 3, 9, 0, 0]]
    assert batch.tokens.tolist() == [[0, 1, 2, 0, 3, 0, 0]]
    assert batch.segments.tolist() == [[1, 1, 1, 2, 2, 0, 0]]


@given(st.lists(st.integers(1, 12), min_size=1, max_size=4), st.integers(0, 1000))
def test_prefix(lengths, seed):
    """A document's beginning is seen both ways and not scored; the rest is scored, and never seen early."""
    row = rows_of([range(10, 10 + n) for n in lengths], 60)
    batch = prefix(row, END, generators(seed))
    for document in range(1, len(lengths) + 1):
        (places,) = np.nonzero(batch.segments[0] == document)
        seen, targets = batch.prefix[0, places], batch.targets[0, places]
        split = np.count_nonzero(targets == 0)
        assert 1 <= split < len(places)
        assert not targets[:split].any() and (targets[split:] == row[0, places[split:]]).all()
        assert seen[: split + 1].all() and not seen[split + 1 :].any()
        # What is seen both ways is what was not scored.
        assert batch.tokens[0, places[: split + 1]].tolist() == [0, *row[0, places[:split]]]


def test_lengths_of_t5():
    """T5's pre-training: 568 tokens make 512 of input and 114 of targets (arXiv:1910.10683, 3.1.4).

    568 * 0.15 = 85.2 are dropped, in 85 / 3 = 28.3 spans: 568 - 85 + 28 + 1 = 512 and 85 + 28 + 1 = 114.
    """
    config = DataConfig(objective="span_corruption", extra_ids=100, sequence_length=512)
    assert raw_length(config) == 568
    assert T5_NOISE.lengths(568) == (512, 114)
    assert extra_ids_needed(config) == 28
    # One token more would not fit.
    assert T5_NOISE.lengths(569)[0] > 512


@settings(max_examples=300)
@given(st.integers(2, 600), st.integers(0, 1000))
def test_noise_mask(length, seed):
    """15% in spans of 3 on average, text first and noise last."""
    noise = noise_mask([length], [T5_NOISE], [np.random.default_rng(seed)])
    assert noise.shape == (length,)
    dropped = min(max(round(0.15 * length), 1), length - 1)
    assert np.count_nonzero(noise) == dropped
    assert np.count_nonzero(noise[1:] & ~noise[:-1]) == max(round(dropped / 3), 1)
    assert not noise[0] and noise[-1]


def merged(inputs, targets):
    """The text, by putting each span where its sentinel stands."""
    spans, current = {}, None
    for token in targets[targets != 0][:-1]:
        if token > 50:
            current = spans.setdefault(int(token), [])
        else:
            current.append(int(token))
    return [t for token in inputs[inputs != 0][:-1] for t in spans.get(int(token), [int(token)])]


@given(st.lists(st.integers(2, 64), min_size=1, max_size=3), st.integers(0, 1000))
def test_span_corruption_loses_nothing(sizes, seed):
    """Also of padded rows: inputs and targets together are the text; sentinels count down, and both close with END."""
    rng = np.random.default_rng(seed)
    rows = np.zeros((len(sizes), 64), np.int32)
    for row, size in zip(rows, sizes, strict=True):
        row[:size] = rng.integers(1, 50, size)
    lengths = T5_NOISE.lengths(64)
    ids = Ids(END, FIRST_SENTINEL, first_mode=0)
    batch = denoise_two_towers(rows, T5_DENOISERS, lengths, ids, generators(*range(len(sizes))))
    assert batch.targets.shape == (len(sizes), lengths[1])
    for row, size, inputs, targets in zip(rows, sizes, batch.encoder_tokens, batch.targets, strict=True):
        assert merged(inputs, targets) == row[:size].tolist()
        assert inputs[inputs != 0][-1] == targets[targets != 0][-1] == END
        for tokens in (inputs, targets):
            sentinels = tokens[tokens > 50]
            assert sentinels.tolist() == list(range(FIRST_SENTINEL, FIRST_SENTINEL - len(sentinels), -1))
        # Targets begin with the first sentinel: the text before it was kept.
        assert targets[0] == FIRST_SENTINEL
    before = np.pad(batch.targets, ((0, 0), (1, 0)))[:, :-1]
    np.testing.assert_array_equal(batch.tokens, np.where(batch.targets != 0, before, 0))


def test_masked():
    """15% are asked for; of those 80% read as the mask, 10% as another piece, 10% as themselves."""
    mask = 500
    rows = np.random.default_rng(0).integers(1, mask, (50, 400)).astype(np.int32)
    rows[:, 300:] = 0
    batch = masked(rows, END, mask, generators(*range(50)))
    asked = batch.targets != 0
    assert (np.count_nonzero(asked, axis=1) == 45).all()
    np.testing.assert_array_equal(batch.targets[asked], rows[asked])
    np.testing.assert_array_equal(batch.tokens[~asked], rows[~asked])
    read = batch.tokens[asked]
    shares = [np.mean(read == mask), np.mean((read != mask) & (read != rows[asked])), np.mean(read == rows[asked])]
    # Five standard deviations of 2,250 draws; another piece is the same one once in 499 times.
    for share, p in zip(shares, (0.8, 0.1, 0.1), strict=True):
        assert abs(share - p) < 5 * np.sqrt(p * (1 - p) / asked.sum())
    assert not batch.tokens[:, 300:].any()


class Pieces:
    size, eod_id = 50, END
    # Pieces above 30 go on with a word; all but those above 40 are inside of one at their end.
    word_edges = (np.arange(50) > 30, np.arange(50) <= 40)


OBJECTIVES = [
    ("causal", "encoder"),
    ("prefix", "encoder"),
    ("masked", "encoder"),
    ("fill_in_the_middle", "encoder"),
    *(
        (objective, inputs)
        for objective in ("span_corruption", "ul2", "text_to_text")
        for inputs in ("encoder", "prefix", "causal")
    ),
]


@pytest.mark.parametrize(("objective", "inputs"), OBJECTIVES)
def test_a_row_depends_on_its_number_alone(objective, inputs):
    """Not on its place in the batch, nor on who else is in it; another number and another seed draw anew."""
    config = DataConfig(objective=objective, inputs=inputs, extra_ids=100, sequence_length=64, batch_size=4, seed=3)
    make = make_objective(config, Pieces())
    rows = np.random.default_rng(0).integers(1, 50, (4, raw_length(config))).astype(np.int32)
    whole, part = make(rows, [4, 5, 6, 7]), make(rows[2:], [6, 7])
    for a, b, promised in zip(whole, part, abstract_batch(config), strict=True):
        assert (a is None) == (b is None) == (promised is None)
        if a is not None:
            np.testing.assert_array_equal(a[2:], b)
            assert (a.shape, a.dtype) == (promised.shape, promised.dtype)
    same_text = np.repeat(rows[:1], 20, axis=0)
    said = make(same_text, range(20)).targets
    assert (objective in ("causal", "text_to_text")) == (len(np.unique(said, axis=0)) == 1)
