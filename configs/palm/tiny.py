"""A small PaLM on the text that comes with Python: pathways-lm train configs/palm/tiny.py

Reproduces: every part of PaLM's recipe (arXiv:2204.02311: architecture, initialisation, Adafactor, z-loss, packing,
vocabulary rules) at a size that two CPU cores train in minutes. The rate's schedule has the paper's form with a
higher start and a shorter hold, for a run of 400 steps.
Came out: 1.65 bits per byte on held-out files (gzip -9 2.14, xz -9 1.91) after six minutes on two cores.
"""

from pathways_lm.config import (
    DataConfig,
    Experiment,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    SampleConfig,
    TrainConfig,
)


def experiment() -> Experiment:
    return Experiment(
        name="palm-tiny",
        model=ModelConfig(
            num_layers=4,
            embed_dim=192,
            num_heads=8,
            head_dim=32,
            mlp_dim=768,
            vocab_size=4096,
            unroll=4,
        ),
        mesh=MeshConfig(data=-1, tensor=1, rules="palm_2d"),
        data=DataConfig(mixture="python_text", sequence_length=256, batch_size=8),
        optimizer=OptimizerConfig(name="adafactor", schedule="rsqrt", learning_rate=2e-2, hold_steps=100),
        train=TrainConfig(num_steps=400, precision="fp32", eval_every=100, checkpoint_every=100),
        sample=SampleConfig(prompt="def __init__(self", num_tokens=96),
    )
