"""Objectives and shapes that do not go together are told in one line."""

import pytest

from pathways_lm.config import DataConfig, Experiment, ModelConfig, TrainConfig
from pathways_lm.errors import ConfigError

MODEL = {"num_layers": 1, "embed_dim": 8, "num_heads": 2, "head_dim": 4, "mlp_dim": 8, "vocab_size": 300}


def experiment(shape, positions="rotary", max_length=0, **data):
    block = "parallel" if shape == "decoder" else "pre_norm"
    model = ModelConfig(shape=shape, block=block, positions=positions, max_length=max_length, **MODEL)
    return Experiment(name="x", model=model, train=TrainConfig(num_steps=1), data=DataConfig(**data))


@pytest.mark.parametrize(
    ("shape", "data"),
    [
        ("decoder", {"objective": "causal"}),
        ("decoder", {"objective": "prefix"}),
        ("decoder", {"objective": "fill_in_the_middle"}),
        ("decoder", {"objective": "ul2", "inputs": "prefix"}),
        ("decoder", {"objective": "text_to_text", "inputs": "causal"}),
        ("decoder", {"objective": "span_corruption", "inputs": "prefix"}),
        ("encoder_decoder", {"objective": "span_corruption"}),
        ("encoder_decoder", {"objective": "ul2"}),
        ("encoder_decoder", {"objective": "text_to_text", "targets_length": 64}),
        ("encoder", {"objective": "masked", "whole_words": True}),
    ],
)
def test_what_goes_together(shape, data):
    experiment(shape, **data)


@pytest.mark.parametrize(
    ("shape", "data", "message"),
    [
        (
            "decoder",
            {"objective": "masked"},
            "data.objective='masked' needs model.shape='encoder', not 'decoder', for which it is 'causal' or "
            "'prefix' or 'fill_in_the_middle', or with data.inputs 'span_corruption' or 'ul2' or 'text_to_text'",
        ),
        (
            "encoder_decoder",
            {"objective": "fill_in_the_middle"},
            "data.objective='fill_in_the_middle' needs model.shape='decoder', not 'encoder_decoder', for which it is "
            "'span_corruption' or 'ul2' or 'text_to_text'",
        ),
        (
            "encoder",
            {"objective": "text_to_text"},
            "data.objective='text_to_text' needs model.shape='encoder_decoder', not 'encoder', "
            "for which it is 'masked'",
        ),
        (
            "decoder",
            {"objective": "text_to_text"},
            "data.objective='text_to_text' with data.inputs='encoder' needs model.shape='encoder_decoder', "
            "not 'decoder', for which data.inputs is 'prefix' or 'causal'",
        ),
        (
            "encoder_decoder",
            {"objective": "ul2", "inputs": "prefix"},
            "data.objective='ul2' with data.inputs='prefix' needs model.shape='decoder', not 'encoder_decoder', "
            "for which data.inputs is 'encoder'",
        ),
        (
            "decoder",
            {"objective": "causal", "inputs": "prefix"},
            "data.inputs='prefix' is for 'span_corruption' or 'ul2' or 'text_to_text', not 'causal'",
        ),
        ("decoder", {"whole_words": True}, "data.whole_words=True is for data.objective='masked', not 'causal'"),
        (
            "encoder_decoder",
            {"objective": "ul2", "targets_length": 8},
            "data.targets_length=8 is for data.objective='text_to_text' with an encoder",
        ),
        (
            "encoder_decoder",
            {"positions": "learned", "max_length": 16, "objective": "text_to_text", "sequence_length": 8}
            | {"targets_length": 32},
            "data.targets_length=32 is above model.max_length=16",
        ),
        ("decoder", {"middle_rate": 1.5}, "data.middle_rate must be at most 1, not 1.5"),
    ],
)
def test_what_does_not(shape, data, message):
    with pytest.raises(ConfigError) as caught:
        experiment(shape, **data)
    assert str(caught.value) == message
