"""`LanguageModel.beam` and `.contrastive`: what the searches find, as text."""

import pytest

from pathways_lm.config import DataConfig, Experiment, TrainConfig
from pathways_lm.decode.beam import Beams, BeamSearch
from pathways_lm.decode.contrastive import Contrastive, ContrastiveSearch
from pathways_lm.language_model import Continuation, LanguageModel


class Letters:
    """A vocabulary of ten letters behind padding and the end."""

    size, eod_id = 12, 1

    def encode(self, text):
        return [ord(letter) - ord("a") + 2 for letter in text]

    def decode(self, tokens):
        return "".join(chr(token - 2 + ord("a")) for token in tokens)


@pytest.fixture(scope="module")
def lm(writer) -> LanguageModel:
    one = writer("decoder")
    data = DataConfig(objective="causal", sequence_length=64)
    experiment = Experiment(name="letters", model=one.model.config, train=TrainConfig(num_steps=1), data=data)
    return LanguageModel(experiment, one.model, one.params, Letters(), 1)


def test_beam(lm):
    beams = Beams(4, num_return=3)
    found = lm.beam(["abc", "jj"], beams, 5)
    expected = BeamSearch(lm.generator).search(lm.params, [[2, 3, 4], [11, 11]], beams, 5)
    assert found == [
        [Continuation(Letters().decode(one.tokens), one.tokens, one.log_probs, one.why, one.score) for one in row]
        for row in expected
    ]
    for row in found:
        assert [one.score for one in row] == sorted((one.score for one in row), reverse=True)


def test_contrastive(lm):
    contrastive = Contrastive(0.3, 3)
    found = lm.contrastive(["abc", "jj"], contrastive, 5)
    expected = ContrastiveSearch(lm.generator).write(lm.params, [[2, 3, 4], [11, 11]], contrastive, 5)
    assert found == [Continuation(Letters().decode(one.tokens), one.tokens, one.log_probs, one.why) for one in expected]
