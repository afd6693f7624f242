"""Megatron-LM's scaling study at 1.2B: pathways-lm train configs/megatron/scaling_1_2b.py

Reproduces: the model of 1.2B (arXiv:1909.08053, table 1), heads of 96, 1-way tensor parallel.
Needs: an accelerator mesh that holds it, and a corpus and vocabulary: --set data.files=… --set data.vocabulary=….
"""

from pathways_lm.config import DataConfig, Experiment, MeshConfig, OptimizerConfig, TrainConfig
from pathways_lm.models.presets import megatron_gpt2


def experiment() -> Experiment:
    return Experiment(
        name="megatron-scaling-1-2b",
        model=megatron_gpt2(40, 1536, 16, remat="block"),
        mesh=MeshConfig(data=-1, tensor=1, rules="tensor_parallel"),
        data=DataConfig(sequence_length=1024, batch_size=512),
        optimizer=OptimizerConfig(
            name="adamw",
            schedule="cosine",
            final_fraction=1 / 15,
            learning_rate=1.5e-4,
            warmup_steps=3_000,
            beta2=0.999,
            weight_decay=0.01,
        ),
        train=TrainConfig(num_steps=300_000, precision="bf16", z_loss=0.0, eval_every=1000, checkpoint_every=1000),
    )
