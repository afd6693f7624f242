"""A small Switch Transformer: pathways-lm train configs/switch/tiny.py

Reproduces: every part of Switch (arXiv:2101.03961): the T5 of configs/t5/tiny.py with 8 experts in every other MLP's
place, as many FLOPs a token, at a size that two CPU cores train in minutes, on the text that comes with Python.
"""

from pathways_lm.config import DataConfig, Experiment, MeshConfig, OptimizerConfig, TrainConfig
from pathways_lm.models.presets import switch


def experiment() -> Experiment:
    return Experiment(
        name="switch-tiny",
        model=switch(4, 8, num_layers=2, embed_dim=128, mlp_dim=512, vocab_size=4096, unroll=4, head_dim=32),
        mesh=MeshConfig(data=-1, rules="palm_2d"),
        data=DataConfig(
            mixture="python_text", objective="span_corruption", extra_ids=100, sequence_length=128, batch_size=16
        ),
        optimizer=OptimizerConfig(name="adafactor", schedule="rsqrt", learning_rate=2e-2, hold_steps=100),
        train=TrainConfig(num_steps=400, precision="fp32", eval_every=100, checkpoint_every=200),
    )
