"""A small ST-MoE: pathways-lm train configs/st_moe/tiny.py

Reproduces: ST-MoE (arXiv:2202.08906): top-2 of 8 gated experts in every fourth layer, a dense MLP behind each, router
z-loss, at a size that two CPU cores train in minutes, on the text that comes with Python.
"""

from pathways_lm.config import DataConfig, Experiment, MeshConfig, OptimizerConfig, TrainConfig
from pathways_lm.models.presets import st_moe


def experiment() -> Experiment:
    return Experiment(
        name="st-moe-tiny",
        model=st_moe(4, 8, num_layers=4, embed_dim=128, mlp_dim=384, vocab_size=4096, unroll=4, head_dim=32),
        mesh=MeshConfig(data=-1, rules="palm_2d"),
        data=DataConfig(
            mixture="python_text", objective="span_corruption", extra_ids=100, sequence_length=128, batch_size=16
        ),
        optimizer=OptimizerConfig(name="adafactor", schedule="rsqrt", learning_rate=2e-2, hold_steps=100),
        train=TrainConfig(num_steps=400, precision="fp32", eval_every=100, checkpoint_every=200),
    )
