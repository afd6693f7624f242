"""Beam search against one written plainly in numpy over the uncached model, and against all there is."""

import itertools
from collections import Counter

import jax
import numpy as np
import pytest

from pathways_lm.decode import program
from pathways_lm.decode.beam import Beams, BeamSearch
from pathways_lm.decode.generate import Generator
from pathways_lm.errors import ConfigError

END, NEW = 1, 6
PROMPTS = [[7, 8, 9], [5], [2, 3, 4] * 10, [11, 10, 11, 2, 2]]


def penalty(beams: Beams, length: int) -> float:
    return ((5 + length) / 6 if beams.form == "gnmt" else length) ** beams.length_penalty


def plain(says, prompt: list[int], beams: Beams, limit: int) -> list[tuple[list[int], float]]:
    """Diverse beam search (arXiv:1610.02424, algorithm 1), hypothesis by hypothesis, with transformers' rules of when
    to stop: tokens with the end, and scores."""
    size = beams.num_beams // beams.groups
    running = [[(0.0, [])] for _ in range(beams.groups)]
    ended: list[list] = [[] for _ in range(beams.groups)]
    open_groups = set(range(beams.groups))
    for length in range(1, limit + 1):
        taken = Counter()
        for group in sorted(open_groups):
            tried = []
            for score, tokens in running[group]:
                for token, log_prob in enumerate(says(prompt, tokens)[1]):
                    tried.append((score + log_prob - beams.diversity * taken[token], [*tokens, token]))
            tried = sorted((one for one in tried if one[0] > -np.inf), key=lambda one: -one[0])[: 2 * size]
            ended[group] += [
                (score / penalty(beams, length), tokens)
                for score, tokens in tried[:size]
                if tokens[-1] == END or length == limit
            ]
            ended[group] = sorted(ended[group], key=lambda one: -one[0])[:size]
            running[group] = [one for one in tried if one[1][-1] != END][:size]
            taken.update(tokens[-1] for _, tokens in running[group])
            if len(ended[group]) == size and (
                beams.early_stopping or running[group][0][0] / penalty(beams, length) <= ended[group][-1][0]
            ):
                open_groups.remove(group)
    best = sorted(itertools.chain(*ended), key=lambda one: -one[0])[: beams.num_return]
    return [(tokens, score) for score, tokens in best]


def searched(search, params, prompts, beams, num_tokens=NEW) -> list[list[tuple[list[int], float]]]:
    found = search.search(params, prompts, beams, num_tokens)
    return [[(one.tokens + [END] * (one.why == "end"), one.score) for one in row] for row in found]


def check(found, expected):
    assert [tokens for tokens, _ in found] == [tokens for tokens, _ in expected]
    np.testing.assert_allclose([score for _, score in found], [score for _, score in expected], rtol=1e-4)


@pytest.fixture(scope="module")
def search(writer) -> BeamSearch:
    one = writer("decoder")
    return BeamSearch(Generator(one.model, one.form, 64))


@pytest.mark.parametrize(
    "beams",
    [
        Beams(6, 0.6, num_return=6),
        Beams(6, 3.0, form="gnmt", num_return=6),
        Beams(6, 2.0, early_stopping=True, num_return=6),
        Beams(6, 0.8, groups=3, diversity=0.7, num_return=6),
        Beams(6, 1.0, groups=3, diversity=0.2, early_stopping=True, num_return=4),
        Beams(6, 1.0, form="gnmt", groups=3, diversity=5.0, num_return=6),
    ],
    ids=lambda beams: f"{beams.form} {beams.length_penalty} {beams.groups} {beams.diversity} {beams.early_stopping}",
)
def test_as_written_plainly(writer, search, beams):
    one = writer("decoder")
    found = searched(search, one.params, PROMPTS, beams)
    for prompt, row in zip(PROMPTS, found, strict=True):
        check(row, plain(one.says, prompt, beams, NEW))
    ends = {tokens[-1] == END for row in found for tokens, _ in row}
    assert ends == {True, False}


@pytest.mark.parametrize("name", ["prefix", "encoder", "experts"])
def test_every_form_on_eight_devices(writer, name):
    """Layers one by one as on CPUs, and stacked as elsewhere."""
    one, beams = writer(name), Beams(4, 0.6, groups=2, diversity=0.3, num_return=4)
    search = BeamSearch(Generator(one.model, one.form, 64, listed=name == "encoder"))
    for prompt, row in zip(PROMPTS, searched(search, one.params, PROMPTS, beams, 4), strict=True):
        check(row, plain(one.says, prompt, beams, 4))


def test_enough_beams_find_the_best_of_all(writer, search):
    """Of all texts of one or two tokens, with as many beams as there are first tokens."""
    one = writer("decoder")
    beams = Beams(11, 0.0, num_return=11)
    for prompt, row in zip(PROMPTS, searched(search, one.params, PROMPTS, beams, 2), strict=True):
        first = one.says(prompt, [])[1]
        texts = [([END], first[END])]
        for token in range(2, 12):
            second = one.says(prompt, [token])[1]
            texts += [([token, other], first[token] + second[other]) for other in range(1, 12)]
        check(row, sorted(texts, key=lambda text: -text[1])[:11])


def test_groups_that_do_not_differ(writer, search):
    """Without diversity each group finds what a search with its beams alone finds."""
    one = writer("decoder")
    alone = searched(search, one.params, PROMPTS, Beams(2, num_return=2))
    groups = searched(search, one.params, PROMPTS, Beams(6, groups=3, num_return=6))
    for found, expected in zip(groups, alone, strict=True):
        check(found, [expected[0]] * 3 + [expected[1]] * 3)


def test_log_probs_are_the_models(writer, search):
    """Whatever diversity took off the scores."""
    one = writer("decoder")
    beams = Beams(6, groups=3, diversity=5.0, num_return=6)
    for prompt, row in zip(PROMPTS, search.search(one.params, PROMPTS, beams, NEW), strict=True):
        for found in row:
            expected = [one.says(prompt, found.tokens[:at])[1][token] for at, token in enumerate(found.tokens)]
            np.testing.assert_allclose(found.log_probs, expected, atol=1e-4)


def test_a_prompt_does_not_depend_on_the_others(writer, search):
    one, beams = writer("decoder"), Beams(6, 0.6, num_return=6)
    together = searched(search, one.params, PROMPTS, beams)
    # Twelve rows: two prompts at a time.
    by_two = BeamSearch(Generator(one.model, one.form, 64, rows=12))
    for found, expected in zip(searched(by_two, one.params, PROMPTS[:3], beams), together, strict=False):
        check(found, expected)


def test_a_long_prompt_is_read_in_pieces(writer, monkeypatch):
    one, beams = writer("decoder"), Beams(2, num_return=2)
    prompt = [[3, 4, 5] * 18]
    monkeypatch.setattr(program, "PIECE", 24)
    in_pieces = BeamSearch(Generator(one.model, one.form, 64))
    check(searched(in_pieces, one.params, prompt, beams)[0], plain(one.says, prompt[0], beams, NEW))


def test_the_context_is_filled_and_not_more(writer, search):
    """64 tokens: the beginning, the prompt, and what is written, each prompt until its own end of the context."""
    one, beams = writer("decoder"), Beams(6, 3.0, num_return=6)
    prompts = [[5] * 61, [5] * 60, [5] * 62]
    for prompt, row in zip(prompts, searched(search, one.params, prompts, beams, 99), strict=True):
        check(row, plain(one.says, prompt, beams, 63 - len(prompt)))


def test_nothing_is_computed_when_all_have_stopped(writer, monkeypatch):
    """Where many hypotheses end at once, a search for 60 tokens takes few steps."""
    one = writer("decoder")
    search, steps = BeamSearch(Generator(one.model, one.form, 64)), []
    extend = search.reader.extend

    def counted(*args):
        jax.debug.callback(lambda: steps.append(1))
        return extend(*args)

    monkeypatch.setattr(search.reader, "extend", counted)
    beams = Beams(2, 0.0, early_stopping=True)
    (row,) = searched(search, one.params, PROMPTS[:1], beams, 60)
    jax.effects_barrier()
    (expected,) = plain(one.says, PROMPTS[0], beams, 60)
    check(row, [expected])
    assert len(expected[0]) <= len(steps) < 30


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_beams": 0}, "num_beams must be 1 or above, not 0"),
        ({"length_penalty": float("inf")}, "length_penalty must be a number, not inf"),
        ({"length_penalty": float("nan")}, "length_penalty must be a number, not nan"),
        ({"form": "t5"}, "form must be 'length' or 'gnmt', not 't5'"),
        ({"groups": 3}, "groups must be a divisor of num_beams=4, not 3"),
        ({"groups": 0}, "groups must be a divisor of num_beams=4, not 0"),
        ({"groups": 2, "diversity": -1.0}, "diversity must be 0 or above, not -1.0"),
        ({"diversity": 0.5}, "diversity must be 0 where groups is 1, not 0.5"),
        ({"num_return": 5}, "num_return must be from 1 to num_beams=4, not 5"),
    ],
)
def test_values_that_make_no_sense(fields, message):
    with pytest.raises(ConfigError) as error:
        Beams(**fields)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("prompts", "beams", "num_tokens", "message"),
    [
        ([[5]], Beams(12), 5, "num_beams must be at most 11, the ids that may be written, not 12"),
        ([[5]], Beams(), 0, "num_tokens must be at least 1, not 0"),
        ([[5], [5] * 63], Beams(), 5, "prompt of 63 tokens is longer than the context: at most 62 fit"),
    ],
)
def test_what_cannot_be_searched(writer, search, prompts, beams, num_tokens, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        search.search(writer("decoder").params, prompts, beams, num_tokens)
