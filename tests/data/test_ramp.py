"""Batch sizes over a run, against the papers' figures."""

from functools import partial

import jax.numpy as jnp
import pytest

from pathways_lm.config import DataConfig, Experiment, MeshConfig, ModelConfig, OptimizerConfig, TrainConfig
from pathways_lm.data.ramp import check_ramp, make_ramp, microbatches
from pathways_lm.errors import ConfigError
from pathways_lm.mesh import make_mesh
from pathways_lm.sharding import rules_of
from pathways_lm.train.schedule import make_schedule


def ramp(text, batch_size, length=2048):
    return make_ramp(DataConfig(batch_ramp=text, batch_size=batch_size, sequence_length=length))


def test_palm():
    """Section 5.1: 512 until step 50k, 1024 until 115k, 2048 until 255k; 780 B tokens."""
    palm = ramp("512x50000,1024x65000", 2048)
    assert [palm.batch_size(step) for step in (0, 49_999, 50_000, 114_999, 115_000, 254_999)] == [
        *(512, 512, 1024, 1024, 2048, 2048)
    ]
    assert palm.rows_before(255_000) == 50_000 * 512 + 65_000 * 1024 + 140_000 * 2048
    assert palm.rows_before(255_000) * 2048 == pytest.approx(780e9, rel=0.01)
    assert palm.sizes == (512, 1024, 2048)


def test_mt_nlg():
    """Section 3.2: from 32 by 32 to 1920 over the first 12 billion tokens."""
    mt_nlg = ramp("32+32/12e9", 1920)
    assert mt_nlg.sizes == tuple(range(32, 1921, 32))
    last = mt_nlg.stretches[-1]
    assert last.first_row * 2048 == pytest.approx(12e9, rel=0.01)
    each = [b.first_row - a.first_row for a, b in zip(mt_nlg.stretches, mt_nlg.stretches[1:], strict=False)]
    assert max(each) - min(each) < 1920


@pytest.mark.parametrize("text", ["", "512x7,1024x5", "32+32/1e6"])
def test_tokens_read(text):
    """As counted step by step."""
    made = ramp(text, 2048 if "x" in text else 256, length=16)
    counted = 0
    for step in range(60):
        assert float(made.tokens_read(16, jnp.float32(step))) == counted
        counted += 16 * made.batch_size(step)


def test_a_warm_up_in_tokens_follows_the_ramp():
    """MT-NLG warms up over tokens while its batches grow: half of them, half of the rate."""
    made = ramp("2x100,4x100", 8, length=10)
    config = OptimizerConfig(schedule="constant", learning_rate=1.0, warmup_tokens=8000)
    schedule = make_schedule(config, 1000, 80, partial(made.tokens_read, 10))
    rates = [float(schedule(jnp.int32(k))) for k in (50, 100, 200, 225, 300)]
    assert rates == pytest.approx([1000 / 8000, 2000 / 8000, 6000 / 8000, 1.0, 1.0])


def test_none():
    assert ramp("", 8).sizes == (8,)
    assert ramp("", 8).first_row(10**6) == 8 * 10**6


def small(ramp, batch_size, microbatches, **mesh):
    model = ModelConfig(num_layers=4, embed_dim=16, num_heads=2, head_dim=8, mlp_dim=16, vocab_size=260)
    data = DataConfig(batch_ramp=ramp, batch_size=batch_size)
    train = TrainConfig(num_steps=10, microbatches=microbatches)
    experiment = Experiment(name="x", model=model, data=data, train=train, mesh=MeshConfig(**mesh))
    return experiment, rules_of(experiment.mesh, make_mesh(experiment.mesh))


def test_microbatches_stay_as_large():
    experiment, rules = small("8x5,16x5", 64, 8, data=8)
    assert [microbatches(experiment, size) for size in (8, 16, 64)] == [1, 2, 8]
    check_ramp(experiment, make_ramp(experiment.data), rules)


@pytest.mark.parametrize(
    ("ramp", "mesh", "said"),
    [
        (
            "12x5",
            {"data": 8},
            "12 is not divisible by 1 microbatches x the 8 devices that share a batch; multiples",
        ),
        ("16x5", {"data": 2, "stage": 4}, "batches of 16 have 2 microbatches, and mesh.stage=4 needs as many"),
    ],
)
def test_ramps_that_do_not_divide(ramp, mesh, said):
    experiment, rules = small(ramp, 64, 8, **mesh)
    with pytest.raises(ConfigError) as told:
        check_ramp(experiment, make_ramp(experiment.data), rules)
    assert said in str(told.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("8x10", "must rise to data.batch_size=8; it goes 8 -> 8"),
        ("4x10,2x10", "it goes 4 -> 2 -> 8"),
        ("4x", "must read SIZExSTEPS"),
        ("0x5", "must read SIZExSTEPS"),
        ("four", "must read SIZExSTEPS"),
        ("2+4/1e6", "2 by 4 does not lead to data.batch_size=8"),
        ("2+2/lots", "must read SIZExSTEPS"),
        ("2+2/1e", "must read SIZExSTEPS"),
    ],
)
def test_ramps_that_cannot_be(text, said):
    with pytest.raises(ConfigError) as told:
        ramp(text, 8)
    assert said in str(told.value)
