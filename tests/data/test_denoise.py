"""Span corruption and UL2: by hand, against the t5 package's own preprocessors, and what must be recoverable."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pathways_lm.config import DataConfig
from pathways_lm.data.objectives import extra_ids_needed, make_objective, raw_length
from pathways_lm.data.objectives.denoise import NLG, NLU, S2S, T5_DENOISERS, UL2_DENOISERS, room
from pathways_lm.data.objectives.noise import Noise, corrupt, noise_mask
from pathways_lm.errors import ConfigError

END, SIZE, EXTRA = 9, 50, 100
LAST = SIZE + EXTRA - 1
MODES = {SIZE + NLU: "[NLU]", SIZE + NLG: "[NLG]", SIZE + S2S: "[S2S]"}


class Pieces:
    size, eod_id = SIZE, END
    word_edges = (np.zeros(SIZE, bool), np.zeros(SIZE, bool))


def config(objective="ul2", inputs="encoder", length=64, **changes) -> DataConfig:
    return DataConfig(objective=objective, inputs=inputs, sequence_length=length, extra_ids=EXTRA, **changes)


def text(size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(10, SIZE, size).astype(np.int32)


def rebuilt(inputs: list[int], targets: list[int]) -> list[int]:
    """The text, by putting each span where its sentinel stands."""
    spans: dict[int, list[int]] = {}
    for token in targets:
        if token >= SIZE:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    return [t for token in inputs for t in spans.get(token, [token])]


def test_by_hand():
    """The example of T5's figure 2: "Thank you for inviting me to your party last week"."""
    words = ["Thank", "you", "for", "inviting", "me", "to", "your", "party", "last", "week"]
    ids = np.arange(10, 20)
    dropped = np.array([word in ("for", "inviting", "last") for word in words])
    inputs, targets = corrupt(ids, dropped, [10], 99)
    names = {**dict(zip(ids, words, strict=True)), 99: "<X>", 98: "<Y>"}
    assert " ".join(names[i] for i in inputs) == "Thank you <X> me to your party <Y> week"
    assert " ".join(names[i] for i in targets) == "<X> for inviting <Y> last"


def test_one_span_at_the_end():
    """UL2's S: a quarter of the text, whatever its length."""
    mask = noise_mask([40], [Noise(0.25, 0)], [np.random.default_rng(0)])
    assert mask.tolist() == [False] * 30 + [True] * 10


@pytest.mark.parametrize("denoiser", [*T5_DENOISERS, *UL2_DENOISERS])
@pytest.mark.parametrize("length", [20, 114, 512])
def test_noise_is_that_of_the_t5_package(denoiser, length):
    """`random_spans_noise_mask`: as many tokens and spans; and spans as long and as often, over many draws."""
    import tensorflow as tf
    from t5.data import preprocessors

    draws = 60
    mean = denoiser.noise.mean_span or length / 4
    theirs = [
        preprocessors.random_spans_noise_mask(
            tf.constant(length), denoiser.noise.rate, tf.constant([[i, 1], [i, 2]]), mean
        ).numpy()
        for i in range(draws)
    ]
    rng = np.random.default_rng(0)
    ours = [noise_mask([length], [denoiser.noise], [rng]) for _ in range(draws)]

    def runs(masks: list[np.ndarray]) -> tuple[set[tuple[int, int]], float]:
        """The counts of tokens and spans there are, and the mean square of a span's length."""
        lengths = []
        counts = set()
        for mask in masks:
            edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
            spans = edges[1::2] - edges[::2]
            counts.add((int(mask.sum()), len(spans)))
            lengths.extend(spans)
        return counts, float(np.mean(np.square(lengths)))

    (our_counts, our_square), (their_counts, their_square) = runs(ours), runs(theirs)
    # Theirs counts in float32, where round(half) may fall to the other side.
    assert len(our_counts) == len(their_counts) == 1
    [(noise, spans)], [(their_noise, their_spans)] = our_counts, their_counts
    assert abs(noise - their_noise) <= 1 and abs(spans - their_spans) <= 1
    assert our_square == pytest.approx(their_square, rel=0.2)


@given(st.integers(2, 200), st.integers(0, 1000), st.sampled_from(UL2_DENOISERS))
def test_corrupt_is_that_of_the_t5_package(length, seed, denoiser):
    """`noise_span_to_unique_sentinel` and `nonnoise_span_to_unique_sentinel`, of the same mask."""
    import tensorflow as tf
    from t5.data import preprocessors

    class Vocabulary:
        vocab_size = LAST + 1
        extra_ids = EXTRA

    tokens = text(length, seed)
    mask = noise_mask([length], [denoiser.noise], [np.random.default_rng(seed)])
    arguments = (tf.constant(tokens), tf.constant(mask), Vocabulary(), None)
    inputs, targets = corrupt(tokens, mask, [length], LAST)
    np.testing.assert_array_equal(inputs, preprocessors.noise_span_to_unique_sentinel(*arguments))
    np.testing.assert_array_equal(targets, preprocessors.nonnoise_span_to_unique_sentinel(*arguments))


def test_ul2_at_512():
    """567 tokens: of a regular denoiser, 85 are dropped in 28 spans, 567 - 85 + 28 and a mode and an end are 512.

    An extreme one drops 284 in 95 spans: with three modes 98 extra ids, below T5's 100.
    """
    wide = config(length=512)
    assert raw_length(wide) == 567
    assert extra_ids_needed(wide) == 98
    # Half of it in spans of 3, their sentinels and an end.
    assert room(UL2_DENOISERS, 512, True).targets == 284 + 95 + 1


@settings(max_examples=60)
@given(st.integers(2, 60), st.integers(0, 10_000))
def test_ul2_loses_nothing(size, number):
    """In both towers: a mode, the text with sentinels, an end; and the spans, and an end."""
    one = config()
    row = np.zeros((1, raw_length(one)), np.int32)
    row[0, :size] = text(size, number)[:size]
    batch = make_objective(one, Pieces())(row, [number])
    inputs, targets = ([t for t in tokens[0].tolist() if t] for tokens in (batch.encoder_tokens, batch.targets))
    assert inputs[0] in MODES and inputs[-1] == targets[-1] == END
    assert rebuilt(inputs[1:-1], targets[:-1]) == row[0, row[0] > 0].tolist()
    np.testing.assert_array_equal(batch.tokens[0, 1:][batch.targets[0, 1:] > 0], targets[:-1])


@settings(max_examples=60)
@given(st.sampled_from(["ul2", "span_corruption"]), st.sampled_from(["prefix", "causal"]), st.integers(0, 10_000))
def test_decoders_lose_nothing(objective, inputs_read, number):
    """Inputs, then targets, in one row; only targets are scored, and only inputs are seen both ways."""
    one = config(objective, inputs_read)
    size = 2 + number % (raw_length(one) - 1)
    row = np.zeros((1, raw_length(one)), np.int32)
    row[0, :size] = text(size, number)
    batch = make_objective(one, Pieces())(row, [number])
    held = np.count_nonzero(batch.segments[0])
    asked = batch.targets[0, :held] > 0
    first = int(np.argmax(asked))
    assert asked[first:].all() and not batch.targets[0, held:].any()
    # Position i reads what stood before it; the last token is only ever asked for.
    whole = [*batch.tokens[0, 1:held].tolist(), int(batch.targets[0, held - 1])]
    inputs, targets = whole[:first], whole[first:]
    assert targets == batch.targets[0, first:held].tolist()
    assert inputs[-1] == targets[-1] == END
    assert (inputs[0] in MODES) == (objective == "ul2")
    assert rebuilt(inputs[1:-1] if objective == "ul2" else inputs[:-1], targets[:-1]) == row[0, :size].tolist()
    if inputs_read == "causal":
        assert batch.prefix is None
    else:
        assert batch.prefix[0, : first + 1].all() and not batch.prefix[0, first + 1 :].any()


@settings(max_examples=60)
@given(
    st.sampled_from(["ul2", "span_corruption"]),
    st.sampled_from(["encoder", "prefix", "causal"]),
    st.lists(st.integers(0, 40), min_size=1, max_size=6),
    st.integers(0, 10_000),
)
def test_a_batch_is_its_rows(objective, inputs_read, sizes, number):
    """Each made alone, whatever the others hold; of less than two tokens nothing is made."""
    one = config(objective, inputs_read)
    rows = np.zeros((len(sizes), raw_length(one)), np.int32)
    for row, size in zip(rows, sizes, strict=True):
        row[:size] = text(40, number + size)[:size]
    make = make_objective(one, Pieces())
    together = make(rows, range(number, number + len(sizes)))
    alone = [make(rows[i : i + 1], [number + i]) for i in range(len(sizes))]
    for name, value in together._asdict().items():
        if value is not None:
            np.testing.assert_array_equal(value, np.concatenate([getattr(batch, name) for batch in alone]))
    np.testing.assert_array_equal(together.targets.any(axis=1), np.array(sizes) > 1)


def test_ul2_draws_its_denoisers_alike():
    """2 of 7 are regular, 1 sequential, 4 extreme; and each mode has its paper's rate."""
    one = config(length=256)
    rows = np.stack([text(raw_length(one), 0)] * 2_100)
    batch = make_objective(one, Pieces())(rows, range(2_100))
    modes = [MODES[int(mode)] for mode in batch.encoder_tokens[:, 0]]
    counts = Counter(modes)
    for mode, share in (("[NLU]", 2 / 7), ("[S2S]", 1 / 7), ("[NLG]", 4 / 7)):
        assert abs(counts[mode] - 2_100 * share) < 5 * np.sqrt(2_100 * share * (1 - share))
    dropped = (batch.targets >= 10) & (batch.targets < SIZE)
    rates = dropped.sum(axis=1) / raw_length(one)
    by_mode = {name: rates[[mode == name for mode in modes]] for name in counts}
    np.testing.assert_allclose(by_mode["[NLU]"], 0.15, atol=0.005)
    np.testing.assert_allclose(by_mode["[S2S]"], 0.25, atol=0.005)
    assert {round(float(rate), 2) for rate in by_mode["[NLG]"]} == {0.15, 0.5}


@given(st.integers(8, 300), st.sampled_from([T5_DENOISERS, UL2_DENOISERS]), st.booleans())
def test_all_shorter_rows_fit(length, denoisers, two):
    found = room(denoisers, length, two)
    assert found.raw >= 2
    for raw in range(2, found.raw + 1):
        for denoiser in denoisers:
            inputs, targets = denoiser.lengths(raw)
            assert (inputs if two else inputs + targets) <= length
            assert targets <= found.targets


def test_too_few_extra_ids_and_too_short():
    with pytest.raises(ConfigError, match=r"^data.extra_ids=100 is too few: data.objective='ul2' with data.sequence"):
        make_objective(config(length=2048), Pieces())
    with pytest.raises(ConfigError, match=r"^data.sequence_length=3 is too short for data.objective='ul2'$"):
        raw_length(config(length=3))
