"""Token by token with a cache, as all at once without one."""

import functools
from collections.abc import Callable
from functools import partial

import jax
import numpy as np
import pytest

from pathways_lm.decode import generate
from pathways_lm.decode.cache import Cache, shardings, write
from pathways_lm.decode.generate import Generator
from pathways_lm.decode.sampling import Sampler
from pathways_lm.errors import ConfigError
from pathways_lm.models.batch import Batch

PIECES, END = 250, 1
GREEDY = Sampler(0.0)
# Of different lengths, one of them empty, one longer than a step of the prompt's width.
PROMPTS = [[7, 8, 9], [], list(range(40, 80)), [200], [3] * 31]


def key(seed=0):
    return jax.random.key(seed)


def uncached(model, params) -> Callable[[list[int]], np.ndarray]:
    """Gives the logits after the last token of a sequence behind its beginning, of the whole sequence at once."""
    call = jax.jit(lambda params, tokens: model.bind(params)(Batch(tokens, tokens)).logits_BLV)

    def last(sequence):
        # Padding stands behind the sequence, where no position of it looks.
        tokens = np.zeros((model.rules.parts("batch"), 64), np.int32)
        tokens[:, 1 : len(sequence) + 1] = sequence
        return np.asarray(call(params, jax.device_put(tokens, model.rules("batch", None))))[0, len(sequence)]

    return last


@pytest.fixture(
    scope="module", params=[("palm_2d", 1, 1), ("palm_2d", 2, 4), ("fsdp", 8, 1), ("tensor_parallel", 1, 8)]
)
def model(request, make):
    return make(*request.param)


@pytest.fixture(scope="module")
def params(model, draw):
    return draw(model, 1)


def test_cached_logits_equal_uncached_ones(model, params):
    """Prompts of uneven length, set flush right as in generation, then ten tokens one by one."""
    model = model.with_whole_sequences()
    config, rules = model.config, model.rules
    rows = 8
    tokens = np.random.default_rng(0).integers(2, PIECES, (rows, 19), dtype=np.int32)
    lengths = np.array([9, 1, 4, 8, 2, 9, 5, 3])
    prompt, positions = np.zeros((rows, 9), np.int32), np.full((rows, 9), -1, np.int32)
    for row, length in enumerate(lengths):
        prompt[row, 9 - length :] = tokens[row, :length]
        positions[row, 9 - length :] = np.arange(length)
    place = partial(jax.device_put, device=rules("batch", None))
    batch_of_layers = shardings(config, rules).keys

    @jax.jit
    def extend(params, tokens, at, cache):
        logits, fresh = model.bind(params).extend(tokens, at, (cache.keys, cache.values), cache.positions)
        return logits[:, -1], fresh

    def blank(slots):
        keys = jax.device_put(
            np.zeros((config.num_layers, rows, slots, 1, config.head_dim), np.float32), batch_of_layers
        )
        return Cache(keys, keys + 0, place(np.full((rows, slots), -1, np.int32)), jax.device_put(np.int32(0), rules()))

    reference = jax.jit(lambda params, tokens: model.bind(params)(Batch(tokens, tokens)).logits_BLV)
    expected = np.asarray(reference(params, place(tokens)))
    scale = np.abs(expected).max()

    logits, fresh = extend(params, place(prompt), place(positions), blank(0))
    cache = jax.jit(write)(blank(24), fresh, place(positions))
    for number in range(10):
        at = lengths + number
        found = np.abs(np.asarray(logits) - expected[np.arange(rows), at - 1]).max()
        assert found <= 1e-5 * scale, number
        step = place(tokens[np.arange(rows), at][:, None]), place(at[:, None].astype(np.int32))
        logits, fresh = extend(params, *step, cache)
        cache = jax.jit(write)(cache, fresh, step[1])
    assert int(cache.used) == 19


@pytest.mark.parametrize(("data", "tensor"), [(1, 1), (2, 4)])
def test_greedy_equals_uncached_greedy(make, draw, data, tensor):
    model = make("palm_2d", data, tensor)
    params = draw(model, 1)
    steps = continuations(model, params, PROMPTS, GREEDY, 6)
    sequences, last = [list(prompt) for prompt in PROMPTS], uncached(model, params)
    for step in steps:
        for row, sequence in enumerate(sequences):
            logits = last(sequence)
            assert 1 <= step[row] < PIECES
            if END in sequence[len(PROMPTS[row]) :]:
                assert step[row] == END
                continue
            # The likeliest that may be drawn, or as good as it: rounding differs.
            best = logits[1:PIECES].max()
            assert logits[step[row]] >= best - 1e-4 * np.abs(logits).max()
            sequence.append(int(step[row]))


@pytest.fixture(scope="module")
def one(make):
    return make()


@pytest.fixture(scope="module")
def small(one, draw):
    return draw(one, 1)


# What is compiled once is used by several tests.
generator = functools.cache(Generator)


def continuations(model, params, prompts, sampler, count, seed=0, pieces=PIECES, context=128) -> np.ndarray:
    """[tokens, prompts]"""
    return np.array(list(generator(model, pieces, END, context).stream(params, prompts, sampler, count, key(seed))))


def test_a_row_does_not_depend_on_the_others(one, small):
    sampler = Sampler(0.9, 50, 0.95)
    together = continuations(one, small, PROMPTS, sampler, 12)
    for row in (1, 3):
        fewer = continuations(one, small, PROMPTS[:row], sampler, 12)
        np.testing.assert_array_equal(fewer, together[: len(fewer), :row])
    others = [PROMPTS[0], [5, 6], [9], [10] * 45, PROMPTS[4]]
    np.testing.assert_array_equal(continuations(one, small, others, sampler, 12)[:, [0, 4]], together[:, [0, 4]])
    # Rows with the same prompt draw apart.
    same = continuations(one, small, [[7] * 40] * 3, sampler, 12)
    assert len(set(map(tuple, same.T.tolist()))) == 3


@pytest.mark.parametrize(
    ("preset", "mesh"),
    [
        ("palm_2d", {"data": 4, "tensor": 2}),
        ("palm_2d", {"data": 2, "context": 2, "tensor": 2, "ring": True}),
        ("sequence_parallel", {"data": 4, "tensor": 2}),
    ],
    ids=str,
)
def test_several_devices_draw_the_same(make, draw, one, small, preset, mesh):
    """Also where training cuts sequences, which one token does not let itself be."""
    model = make(preset, **mesh)
    sampler = Sampler(1.0, 0, 0.9)
    found = continuations(model, draw(model, 1), PROMPTS, sampler, 8)
    np.testing.assert_array_equal(found, continuations(one, small, PROMPTS, sampler, 8))


def test_padding_and_rows_beyond_the_vocabulary_are_never_drawn(one, small):
    """Hot and in a vocabulary of five pieces: every piece but padding comes, and nothing else."""
    drawn = continuations(one, small, [[2, 3]] * 40, Sampler(50.0), 60, pieces=5)
    assert set(drawn.ravel().tolist()) == {1, 2, 3, 4}


def test_an_ended_row_stays_ended_and_all_ended_is_the_end(one, small):
    drawn = continuations(one, small, [[2, 3]] * 4, Sampler(50.0), 100, pieces=4)
    assert len(drawn) < 100
    assert np.all(drawn[-1] == END)
    assert not np.all(drawn[-2] == END)
    for row in drawn.T:
        first = row.tolist().index(END)
        assert np.all(row[first:] == END)
        assert np.all(row[:first] > 1)


def test_the_end_is_the_vocabularys(one, small):
    """Its number is not fixed: here 3 ends a text, and 1 is a piece as any other."""
    generator = Generator(one, 5, 3, 128)
    drawn = np.array(list(generator.stream(small, [[2]] * 8, Sampler(50.0), 100, key())))
    for row in drawn.T.tolist():
        assert set(row[row.index(3) :]) == {3}
    assert 1 in drawn


@pytest.mark.parametrize(("length", "tokens"), [(0, 31), (20, 11), (29, 2), (30, 1)])
def test_the_context_is_filled_and_not_more(one, small, length, tokens):
    """32 tokens: the beginning, the prompt, and what is written."""
    drawn = continuations(one, small, [[5] * length], Sampler(1.0, 0, 0.5), 99, context=32)
    assert len(drawn) == tokens or drawn[-1, 0] == END


@pytest.mark.parametrize("prompts", [[[5] * 31], [[5], [5] * 200]])
def test_prompt_longer_than_the_context(one, small, monkeypatch, prompts):
    monkeypatch.setattr(Generator, "_start", lambda *args, **kwargs: pytest.fail("began to compile"))
    with pytest.raises(ConfigError, match=f"prompt of {len(prompts[-1])} tokens .* at most 30 "):
        continuations(one, small, prompts, GREEDY, 1, context=32)


def test_the_cache_is_donated(one, small, monkeypatch):
    """Each step writes into the memory of the cache before it."""
    generator = Generator(one, PIECES, END, 64)
    seen = []
    step = generator._step

    def watched(params, previous, at, cache, *rest, **options):
        result = step(params, previous, at, cache, *rest, **options)
        seen.append((cache, result[2]))
        return result

    monkeypatch.setattr(generator, "_step", watched)
    list(generator.stream(small, [[7]], Sampler(1.0), 5, key()))
    assert len(seen) == 4
    assert all(before.keys.is_deleted() and before.values.is_deleted() for before, _ in seen)
    assert not seen[-1][1].keys.is_deleted()


def test_a_step_is_compiled_once(one, small):
    """Prompts of up to 31 tokens and their continuations share their programs."""
    generator = Generator(one, PIECES, END, 64)
    for prompts in ([[7]], [[3] * 20], [[8] * 31]):
        list(generator.stream(small, prompts, GREEDY, 4, key(len(prompts))))
    assert generator._prefill._cache_size() == generator._step._cache_size() == 1
    assert generate.PROMPT_STEP == 32
