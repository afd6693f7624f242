"""A small GLaM: pathways-lm train configs/glam/tiny.py

Reproduces: every part of GLaM (arXiv:2112.06905): a decoder, top-2 of 8 ungated experts in every other layer,
per-layer relative positions, at a size that two CPU cores train in minutes, on the text that comes with Python.
"""

from pathways_lm.config import DataConfig, Experiment, MeshConfig, OptimizerConfig, TrainConfig
from pathways_lm.models.presets import glam


def experiment() -> Experiment:
    return Experiment(
        name="glam-tiny",
        model=glam(4, 8, num_layers=4, embed_dim=128, mlp_dim=512, vocab_size=4096, unroll=4, head_dim=32),
        mesh=MeshConfig(data=-1, rules="palm_2d"),
        data=DataConfig(mixture="python_text", sequence_length=128, batch_size=16),
        optimizer=OptimizerConfig(name="adafactor", schedule="rsqrt", learning_rate=2e-2, hold_steps=100),
        train=TrainConfig(num_steps=400, precision="fp32", eval_every=100, checkpoint_every=200),
    )
