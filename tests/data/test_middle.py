"""Fill in the middle: by hand, and what must be recoverable."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pathways_lm.config import DataConfig
from pathways_lm.data.objectives import make_objective, raw_length
from pathways_lm.data.objectives.middle import most_rearranged, rearranged
from pathways_lm.errors import ConfigError

END, SIZE = 9, 50
PRE, MID, SUF = SIZE, SIZE + 1, SIZE + 2


class Pieces:
    size, eod_id = SIZE, END
    word_edges = (np.zeros(SIZE, bool), np.zeros(SIZE, bool))


class Cuts:
    """A generator that cuts where it is told, in the form it is told."""

    def __init__(self, cuts, lot):
        self.cuts, self.lot = cuts, lot

    def integers(self, low, high, size):
        assert (low, size) == (0, 2) and max(self.cuts) < high
        return np.array(self.cuts)

    def random(self):
        return self.lot


def test_by_hand():
    """arXiv:2207.14255, section 3: PSM, and SPM as trained beside it."""
    document = np.array([11, 12, 13, 14, 15, END])
    psm = rearranged(document, END, PRE, 0.5, Cuts((3, 1), 0.7))
    assert psm.tolist() == [PRE, 11, SUF, 14, 15, MID, 12, 13, END]
    spm = rearranged(document, END, PRE, 0.5, Cuts((1, 3), 0.3))
    assert spm.tolist() == [PRE, SUF, 14, 15, MID, 11, 12, 13, END]
    # Empty parts, and a document that goes on in the next row: the middle ends all the same.
    assert rearranged(np.array([11, 12]), END, PRE, 0.0, Cuts((0, 2), 0.5)).tolist() == [PRE, SUF, MID, 11, 12, END]


def put_back(document: list[int]) -> list[int]:
    """A document as it was, its end left out."""
    text = [token for token in document if token != END]
    if PRE not in text:
        return text
    assert document[-1] == END
    pre, suf, mid = (text.index(token) for token in (PRE, SUF, MID))
    assert pre == 0
    prefix, suffix, middle = text[1:suf], text[suf + 1 : mid], text[mid + 1 :]
    return prefix + middle + suffix  # of SPM, prefix and middle stand together behind <MID>


def split_documents(tokens: list[int]) -> list[list[int]]:
    found: list[list[int]] = [[]]
    for token in tokens:
        found[-1].append(token)
        if token == END:
            found.append([])
    return [document for document in found if document]


@settings(max_examples=200)
@given(
    st.lists(st.integers(0, 90), min_size=1, max_size=12),
    st.integers(0, 10_000),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.sampled_from([0.0, 0.5, 1.0]),
)
def test_loses_nothing(sizes, number, rate, spm):
    """Document by document; a row's cut tail is one of its own."""
    length = 300
    config = DataConfig(
        objective="fill_in_the_middle", sequence_length=length, extra_ids=3, middle_rate=rate, middle_spm_rate=spm
    )
    rng = np.random.default_rng(number)
    stream = [t for size in sizes for t in (*rng.integers(10, SIZE, size).tolist(), END)][: raw_length(config)]
    row = np.zeros((1, raw_length(config)), np.int32)
    row[0, : len(stream)] = stream
    batch = make_objective(config, Pieces())(row, [number])
    assert batch.targets.shape == (1, length)
    laid = [token for token in batch.targets[0].tolist() if token]
    before, after = split_documents(stream), split_documents(laid)
    assert len(before) == len(after)
    assert [put_back(document) for document in after] == [[t for t in d if t != END] for d in before]
    changed = [document for document in after if PRE in document]
    most = min(len(before), most_rearranged(length))
    assert {0.0: 0, 0.5: len(changed), 1.0: most}[rate] == len(changed) <= most
    if spm == 1.0:
        assert all(document[1] == SUF for document in changed)
    # Each document is a segment: nothing looks from one into another.
    assert batch.segments[0, : len(laid)].tolist() == [i + 1 for i, d in enumerate(after) for _ in d]


def test_rates():
    config = DataConfig(
        objective="fill_in_the_middle", sequence_length=64, extra_ids=3, middle_rate=0.4, middle_spm_rate=0.25
    )
    rows = np.full((4_000, raw_length(config)), 20, np.int32)
    first = make_objective(config, Pieces())(rows, range(4_000)).targets
    forms = Counter("none" if row[0] != PRE else "spm" if row[1] == SUF and SUF in row[:2] else "psm" for row in first)
    assert abs((forms["spm"] + forms["psm"]) / 4_000 - 0.4) < 5 * np.sqrt(0.24 / 4_000)
    # A PSM whose prefix is empty looks like an SPM: one cut at 0 of 60 places, twice as often with two cuts.
    share = forms["spm"] / (forms["spm"] + forms["psm"])
    places = raw_length(config) + 1
    expected = 0.25 + 0.75 * (1 - (1 - 1 / places) ** 2)
    assert abs(share - expected) < 5 * np.sqrt(0.25 / 1_600)


def test_too_short():
    with pytest.raises(ConfigError, match=r"^data.sequence_length=5 is too short for data.objective='fill_in_the_"):
        raw_length(DataConfig(objective="fill_in_the_middle", sequence_length=5))
