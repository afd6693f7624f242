"""A small T5: pathways-lm train configs/t5/tiny.py

Reproduces: every part of T5 (arXiv:1910.10683) but the dropout: encoder-decoder, relative positions, span corruption,
Adafactor, at a size that two CPU cores train in minutes, on the text that comes with Python.
"""

from pathways_lm.config import DataConfig, Experiment, MeshConfig, OptimizerConfig, TrainConfig
from pathways_lm.models.presets import t5


def experiment() -> Experiment:
    return Experiment(
        name="t5-tiny",
        model=t5(
            4,
            num_layers=2,
            embed_dim=128,
            mlp_dim=512,
            vocab_size=4096,
            unroll=4,
            head_dim=32,
            dropout=0.0,
            hidden_dropout=0.0,
        ),
        mesh=MeshConfig(data=-1, rules="palm_2d"),
        data=DataConfig(
            mixture="python_text", objective="span_corruption", extra_ids=100, sequence_length=128, batch_size=16
        ),
        optimizer=OptimizerConfig(name="adafactor", schedule="rsqrt", learning_rate=2e-2, hold_steps=100),
        train=TrainConfig(num_steps=400, precision="fp32", eval_every=100, checkpoint_every=200),
    )
