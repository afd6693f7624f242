"""Token by token with a cache, as all at once without one."""

import functools
from collections.abc import Callable
from functools import partial

import jax
import numpy as np
import pytest

from pathways_lm.decode import generate, program
from pathways_lm.decode.form import Form
from pathways_lm.decode.generate import Generator, Written
from pathways_lm.decode.sampling import Sampler
from pathways_lm.errors import ConfigError
from pathways_lm.models.batch import Batch

PIECES, END = 250, 1
GREEDY = Sampler(temperature=0)
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


@pytest.mark.parametrize(("data", "tensor"), [(1, 1), (2, 4)])
def test_greedy_equals_uncached_greedy(make, draw, data, tensor):
    model = make("palm_2d", data, tensor)
    params = draw(model, 1)
    written = continuations(model, params, PROMPTS, GREEDY, 6)
    last = uncached(model, params)
    for prompt, one in zip(PROMPTS, written, strict=True):
        sequence = list(prompt)
        for token in one.tokens + [END] * (one.why == "end"):
            logits = last(sequence)
            assert 1 <= token < PIECES
            # The likeliest that may be drawn, or as good as it: rounding differs.
            best = logits[1:PIECES].max()
            assert logits[token] >= best - 1e-4 * np.abs(logits).max()
            sequence.append(token)
        assert one.why == "end" or len(one.tokens) == 6


@pytest.fixture(scope="module")
def one(make):
    return make()


@pytest.fixture(scope="module")
def small(one, draw):
    return draw(one, 1)


# What is compiled once is used by several tests.
@functools.cache
def generator(model, pieces=PIECES, end=END, context=128, rows=4):
    return Generator(model, Form(pieces, end), context, rows=rows)


def continuations(model, params, prompts, sampler, count, seed=0, **options) -> list[Written]:
    return generator(model, **options).write(params, prompts, sampler, count, key(seed))


def tokens(written):
    return [one.tokens for one in written]


def test_log_probs_are_the_models(one, small):
    """Of what was drawn, among what may be written, whatever the temperature."""
    written = continuations(one, small, PROMPTS[:2], Sampler(temperature=3.0, top_k=20), 5)
    last = uncached(one, small)
    for prompt, row in zip(PROMPTS, written, strict=False):
        for index, token in enumerate(row.tokens):
            logits = last(prompt + row.tokens[:index]).astype(np.float64)[1:PIECES]
            expected = logits[token - 1] - np.log(np.sum(np.exp(logits)))
            np.testing.assert_allclose(row.log_probs[index], expected, atol=1e-4)


def test_a_row_does_not_depend_on_the_others(one, small):
    """Nor on how many there are at a time: with two rows for five prompts, who has ended makes room for the next."""
    sampler = Sampler(temperature=0.9, top_k=50, top_p=0.95)
    together = tokens(continuations(one, small, PROMPTS, sampler, 12, rows=8))
    assert tokens(continuations(one, small, PROMPTS, sampler, 12, rows=2)) == together
    for row in (1, 3):
        assert tokens(continuations(one, small, PROMPTS[:row], sampler, 12)) == together[:row]
    others = [PROMPTS[0], [5, 6], [9], [10] * 45, PROMPTS[4]]
    found = tokens(continuations(one, small, others, sampler, 12))
    assert (found[0], found[4]) == (together[0], together[4])
    # Rows with the same prompt draw apart.
    same = tokens(continuations(one, small, [[7] * 40] * 3, sampler, 12))
    assert len(set(map(tuple, same))) == 3


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
    sampler = Sampler(temperature=1.0, top_p=0.9, repetition_penalty=1.1, no_repeat_ngram=3)
    found = tokens(continuations(model, draw(model, 1), PROMPTS, sampler, 8))
    assert found == tokens(continuations(one, small, PROMPTS, sampler, 8))


def test_a_long_prompt_is_read_in_pieces(one, small, monkeypatch):
    sampler = Sampler(temperature=0.5)
    prompts = [[3, 4, 5] * 30, [6, 7] * 41, [9] * 5]
    expected = tokens(continuations(one, small, prompts, sampler, 6))
    monkeypatch.setattr(program, "PIECE", 32)
    in_pieces = Generator(one, Form(PIECES, END), 128, rows=4)
    assert tokens(in_pieces.write(small, prompts, sampler, 6, key())) == expected


def test_a_window_of_slots(make, draw):
    """A model that sees 16 positions keeps 32 slots, over which texts of more than 60 tokens go several times."""
    model = make(window=16)
    params = draw(model, 1)
    prompts = [[3, 4, 5] * 15, [9], [6, 7] * 20]
    small = Generator(model, Form(PIECES, END), 90, rows=2)
    assert small.begin(prompts, [40] * 3, GREEDY)[0].cache.positions_BS.shape[1] == 32
    written = small.write(params, prompts, GREEDY, 40, key())
    call = jax.jit(lambda params, tokens: model.bind(params)(Batch(tokens, tokens)).logits_BLV)
    for prompt, one in zip(prompts, written, strict=True):
        sequence = np.zeros((1, 96), np.int32)
        sequence[0, 1 : 1 + len(prompt) + len(one.tokens)] = prompt + one.tokens
        logits = np.asarray(call(params, jax.device_put(sequence, model.rules("batch", None))))[0, :, 1:PIECES]
        for index, token in enumerate(one.tokens):
            here = logits[len(prompt) + index]
            assert here[token - 1] >= here.max() - 1e-4 * np.abs(here).max()


def test_an_encoder_reads_the_prompt(make, draw):
    """Greedily, as the whole model says of the same encoder's text and what was written so far."""
    model = make(shape="encoder_decoder", block="pre_norm", positions="relative", num_kv_heads=8)
    params = draw(model, 2)
    form = Form(PIECES, END, encoder=True, closing=(END,))
    prompts = [[7, 8, 9], [5], list(range(10, 50))]
    written = Generator(model, form, 64, rows=2).write(params, prompts, GREEDY, 5, key())
    call = jax.jit(lambda params, batch: model.bind(params)(batch).logits_BLV)
    for prompt, one in zip(prompts, written, strict=True):
        decoded = np.zeros((1, 8), np.int32)
        decoded[0, 1 : len(one.tokens) + 1] = one.tokens
        read = np.array([[*prompt, END]], np.int32)
        place = partial(jax.device_put, device=model.rules("batch", None))
        batch = Batch(place(decoded), None, encoder_tokens=place(read), encoder_segments=place(np.ones_like(read)))
        logits = np.asarray(call(params, batch))[0, :, 1:PIECES]
        for index, token in enumerate(one.tokens):
            assert logits[index, token - 1] >= logits[index].max() - 1e-4 * np.abs(logits).max()


def test_padding_and_rows_beyond_the_vocabulary_are_never_drawn(one, small):
    """Hot and in a vocabulary of five pieces: every piece but padding comes, and nothing else."""
    drawn = continuations(one, small, [[2, 3]] * 40, Sampler(temperature=50.0), 60, pieces=5)
    assert {token for row in drawn for token in row.tokens} == {2, 3, 4}
    assert {row.why for row in drawn} == {"end"}


def test_the_end_is_the_vocabularys(one, small):
    """Its number is not fixed: here 3 ends a text, and 1 is a piece as any other."""
    drawn = continuations(one, small, [[2]] * 8, Sampler(temperature=50.0), 100, pieces=5, end=3)
    assert {token for row in drawn for token in row.tokens} == {1, 2, 4}


def test_stopped_in_between(one, small):
    """What a row has written is looked at, and the row is given to the next prompt."""
    sampler = Sampler(temperature=1.0)
    free = continuations(one, small, PROMPTS, sampler, 40)
    stopped = generator(one, rows=2).write(small, PROMPTS, sampler, 40, key(), lambda written: min(len(written), 3))
    assert tokens(stopped) == [row.tokens[:3] for row in free]
    assert [len(row.log_probs) for row in stopped] == [len(row.tokens) for row in stopped]


@pytest.mark.parametrize(("length", "room"), [(0, 31), (20, 11), (29, 2), (30, 1)])
def test_the_context_is_filled_and_not_more(one, small, length, room):
    """32 tokens: the beginning, the prompt, and what is written."""
    (drawn,) = continuations(one, small, [[5] * length], Sampler(temperature=1.0, top_p=0.5), 99, context=32)
    assert len(drawn.tokens) == room or drawn.why == "end"


@pytest.mark.parametrize("prompts", [[[5] * 31], [[5], [5] * 200]])
def test_prompt_longer_than_the_context(one, small, monkeypatch, prompts):
    monkeypatch.setattr(Generator, "fill", lambda *args, **kwargs: pytest.fail("began to compile"))
    with pytest.raises(ConfigError, match=f"prompt of {len(prompts[-1])} tokens .* at most 30 "):
        continuations(one, small, prompts, GREEDY, 1, context=32)


def test_the_cache_is_donated(one, small, monkeypatch):
    """Each go writes into the memory of the cache before it."""
    watched = Generator(one, Form(PIECES, END), 64)
    seen, steps = [], watched._steps

    def watch(weights, state, *rest, **options):
        result = steps(weights, state, *rest, **options)
        seen.append((state, result[0]))
        return result

    monkeypatch.setattr(watched, "_steps", watch)
    list(watched.stream(small, [[7]], Sampler(temperature=1.0), 5, key(), 1, [Written()]))
    assert len(seen) == 5
    assert all(leaf.is_deleted() for before, _ in seen for leaf in jax.tree.leaves(before.cache.layers))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(seen[-1][1].cache.layers))


@pytest.mark.parametrize(("rows", "heads"), [(1, 1), (1, 4), (4, 4)])
def test_a_step_changes_the_cache_where_it_is(make, draw, rows, heads):
    """All that steps need besides their arguments is less than the keys of one layer."""
    model = make("palm_2d", 1, 1, num_kv_heads=heads, head_dim=32)
    long, needed = Generator(model, Form(PIECES, END), 4096), []
    steps = long._steps

    def compiled_only(*given, **options):
        needed.append(steps.lower(*given, **options).compile().memory_analysis().temp_size_in_bytes)
        raise KeyboardInterrupt

    long._steps = compiled_only
    with pytest.raises(KeyboardInterrupt):
        long.write(draw(model, 0), [[7, 8]] * rows, GREEDY, 4000, key())
    assert needed[0] < 4 * rows * heads * 4032 * model.config.head_dim


def test_a_step_is_compiled_once(one, small):
    """Prompts of up to 32 tokens and their continuations share their programs."""
    shared = Generator(one, Form(PIECES, END), 64)
    for prompt in ([7], [3] * 20, [8] * 31):
        shared.write(small, [prompt], GREEDY, 64 - 1 - len(prompt), key(len(prompt)))
    assert shared._prefill._cache_size() == shared._steps._cache_size() == 1
    assert generate.LENGTH_STEP == 32
