"""A small T5 1.1: pathways-lm train configs/t5/v1_1_tiny.py

Reproduces: T5 1.1: GEGLU, a head of its own, at a size that two CPU cores train in minutes, on the text that comes
with Python.
"""

from pathways_lm.config import DataConfig, Experiment, MeshConfig, OptimizerConfig, TrainConfig
from pathways_lm.models.presets import t5_1_1


def experiment() -> Experiment:
    return Experiment(
        name="t5-v1-1-tiny",
        model=t5_1_1(4, num_layers=2, embed_dim=128, mlp_dim=384, vocab_size=4096, unroll=4, head_dim=32),
        mesh=MeshConfig(data=-1, rules="palm_2d"),
        data=DataConfig(
            mixture="python_text", objective="span_corruption", extra_ids=100, sequence_length=128, batch_size=16
        ),
        optimizer=OptimizerConfig(name="adafactor", schedule="rsqrt", learning_rate=2e-2, hold_steps=100),
        train=TrainConfig(num_steps=400, precision="fp32", eval_every=100, checkpoint_every=200),
    )
