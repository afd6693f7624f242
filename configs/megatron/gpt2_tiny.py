"""A small GPT-2 of Megatron-LM's form: pathways-lm train configs/megatron/gpt2_tiny.py

Reproduces: every part of Megatron-LM's GPT-2 (arXiv:1909.08053): pre-norm, biases, learned positions, dropout, AdamW,
at a size that two CPU cores train in minutes, on the text that comes with Python.
"""

from pathways_lm.config import DataConfig, Experiment, MeshConfig, OptimizerConfig, TrainConfig
from pathways_lm.models.presets import megatron_gpt2


def experiment() -> Experiment:
    return Experiment(
        name="megatron-gpt2-tiny",
        model=megatron_gpt2(4, 128, 4, vocab_size=4096, max_length=128, unroll=4),
        mesh=MeshConfig(data=-1, rules="tensor_parallel"),
        data=DataConfig(mixture="python_text", sequence_length=128, batch_size=16),
        optimizer=OptimizerConfig(
            name="adamw", schedule="cosine", learning_rate=2e-3, warmup_steps=40, beta2=0.95, weight_decay=0.1
        ),
        train=TrainConfig(num_steps=400, precision="fp32", eval_every=100, checkpoint_every=200),
    )
