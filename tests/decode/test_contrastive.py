"""Contrastive search against equation 5 of arXiv:2202.06417 in numpy, over the uncached model."""

import numpy as np
import pytest

from pathways_lm.decode import program
from pathways_lm.decode.contrastive import Contrastive, ContrastiveSearch
from pathways_lm.decode.generate import Generator
from pathways_lm.errors import ConfigError

END, NEW = 1, 8
# After [3] and [8, 11] a candidate that is unlike every token before it, cosines all negative, is chosen.
PROMPTS = [[7, 8, 9], [3], [], [2, 3, 4] * 10, [8, 11], [11, 10, 11, 2, 2]]


def plain(says, prompt: list[int], alpha: float, top_k: int, limit: int) -> list[int]:
    """Tokens, with the end."""
    written: list[int] = []
    while len(written) < limit and END not in written:
        log_probs = says(prompt, written)[1]
        scores = {}
        for token in np.argsort(-log_probs)[:top_k].tolist():
            x_LD = says(prompt, [*written, token])[0]
            cosines = x_LD[:-1] @ x_LD[-1] / np.linalg.norm(x_LD[:-1], axis=1) / np.linalg.norm(x_LD[-1])
            scores[token] = (1 - alpha) * np.exp(log_probs[token]) - alpha * max(cosines)
        written.append(max(scores, key=scores.__getitem__))
    return written


def searched(search, params, prompts, contrastive, num_tokens=NEW) -> list[list[int]]:
    written = search.write(params, prompts, contrastive, num_tokens)
    return [one.tokens + [END] * (one.why == "end") for one in written]


@pytest.fixture(scope="module")
def search(writer) -> ContrastiveSearch:
    one = writer("decoder")
    return ContrastiveSearch(Generator(one.model, one.form, 64))


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.6, 1.0])
def test_as_written_plainly(writer, search, alpha):
    one = writer("decoder")
    found = searched(search, one.params, PROMPTS, Contrastive(alpha, 4))
    assert found == [plain(one.says, prompt, alpha, 4, NEW) for prompt in PROMPTS]


@pytest.mark.parametrize("name", ["prefix", "encoder", "experts"])
def test_every_form_on_eight_devices(writer, name):
    """Layers one by one as on CPUs, and stacked as elsewhere."""
    one = writer(name)
    search = ContrastiveSearch(Generator(one.model, one.form, 64, listed=name == "prefix"))
    found = searched(search, one.params, PROMPTS, Contrastive(0.4, 3), 5)
    assert found == [plain(one.says, prompt, 0.4, 3, 5) for prompt in PROMPTS]


def test_log_probs_are_the_models(writer, search):
    one = writer("decoder")
    for prompt, row in zip(PROMPTS, search.write(one.params, PROMPTS, Contrastive(0.6, 4), NEW), strict=True):
        expected = [one.says(prompt, row.tokens[:at])[1][token] for at, token in enumerate(row.tokens)]
        np.testing.assert_allclose(row.log_probs, expected, atol=1e-4)


def test_a_prompt_does_not_depend_on_the_others(writer, search):
    one, contrastive = writer("decoder"), Contrastive(0.6, 4)
    together = searched(search, one.params, PROMPTS, contrastive)
    # Eight rows: two prompts at a time.
    by_two = ContrastiveSearch(Generator(one.model, one.form, 64, rows=8))
    assert searched(by_two, one.params, PROMPTS[:3], contrastive) == together[:3]


def test_a_long_prompt_is_read_in_pieces(writer, monkeypatch):
    one, prompt = writer("decoder"), [3, 4, 5] * 17
    monkeypatch.setattr(program, "PIECE", 24)
    in_pieces = ContrastiveSearch(Generator(one.model, one.form, 64))
    found = searched(in_pieces, one.params, [prompt], Contrastive(0.6, 4))
    assert found == [plain(one.says, prompt, 0.6, 4, NEW)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"alpha": -0.1}, "alpha must be from 0 to 1, not -0.1"),
        ({"alpha": float("nan")}, "alpha must be from 0 to 1, not nan"),
        ({"top_k": 0}, "top_k must be 1 or above, not 0"),
    ],
)
def test_values_that_make_no_sense(fields, message):
    with pytest.raises(ConfigError) as error:
        Contrastive(**fields)
    assert str(error.value) == message


def test_more_candidates_than_ids(writer, search):
    with pytest.raises(ConfigError, match=r"^top_k must be at most 11, the ids that may be written, not 12$"):
        search.write(writer("decoder").params, PROMPTS, Contrastive(top_k=12), NEW)
