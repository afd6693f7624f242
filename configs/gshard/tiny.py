"""A small GShard: pathways-lm train configs/gshard/tiny.py

Reproduces: GShard's top-2 routing with a random second choice (arXiv:2006.16668, section 2.2), at a size that two CPU
cores train in minutes, on the text that comes with Python.
"""

from pathways_lm.config import DataConfig, Experiment, MeshConfig, OptimizerConfig, TrainConfig
from pathways_lm.models.presets import gshard


def experiment() -> Experiment:
    return Experiment(
        name="gshard-tiny",
        model=gshard(
            8,
            4,
            embed_dim=128,
            mlp_dim=512,
            vocab_size=4096,
            unroll=4,
            head_dim=32,
            num_heads=4,
            num_kv_heads=4,
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
