"""Megatron's 18.4B: pathways-lm train configs/megatron/3d_18_4b.py

Reproduces: the model of 18.4B (arXiv:2104.04473, table 1): batch 1,024 of length 2,048, 8-way tensor parallel.
Needs: an accelerator mesh that holds it, and a corpus and vocabulary: --set data.files=… --set data.vocabulary=….
"""

from pathways_lm.config import DataConfig, Experiment, MeshConfig, OptimizerConfig, TrainConfig
from pathways_lm.models.presets import megatron_turing


def experiment() -> Experiment:
    return Experiment(
        name="megatron-3d-18-4b",
        model=megatron_turing(40, 6144, 48, remat="block"),
        mesh=MeshConfig(data=-1, tensor=8, rules="tensor_parallel", zero=0),
        data=DataConfig(sequence_length=2048, batch_size=1024),
        optimizer=OptimizerConfig(
            name="adamw", schedule="cosine", learning_rate=1.5e-4, warmup_steps=3_000, weight_decay=0.1
        ),
        train=TrainConfig(num_steps=300_000, precision="bf16", z_loss=0.0, eval_every=1000, checkpoint_every=1000),
    )
