"""Megatron-LM's GPT-2 of 2.5B: pathways-lm train configs/megatron/gpt2_2_5b.py

Reproduces: GPT-2 2.5B (arXiv:1909.08053, table 2): batch 512 of length 1,024, 300,000 steps, warm-up 3,000, a cosine
that ends at 1e-5.
Needs: an accelerator mesh that holds it, and a corpus and vocabulary: --set data.files=… --set data.vocabulary=….
"""

from pathways_lm.config import DataConfig, Experiment, MeshConfig, OptimizerConfig, TrainConfig
from pathways_lm.models.presets import megatron_gpt2


def experiment() -> Experiment:
    return Experiment(
        name="megatron-gpt2-2-5b",
        model=megatron_gpt2(54, 1920, 20, remat="block"),
        mesh=MeshConfig(data=-1, tensor=2, rules="tensor_parallel"),
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
