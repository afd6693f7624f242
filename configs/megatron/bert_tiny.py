"""A small BERT of Megatron-LM's form: pathways-lm train configs/megatron/bert_tiny.py

Reproduces: Megatron-LM's BERT (arXiv:1909.08053, section 5.3) with the masked-token objective, at a size that two CPU
cores train in minutes, on the text that comes with Python.
"""

from pathways_lm.config import DataConfig, Experiment, MeshConfig, OptimizerConfig, TrainConfig
from pathways_lm.models.presets import megatron_bert


def experiment() -> Experiment:
    return Experiment(
        name="megatron-bert-tiny",
        model=megatron_bert(4, 128, 4, vocab_size=4096, max_length=128, unroll=4),
        mesh=MeshConfig(data=-1, rules="tensor_parallel"),
        data=DataConfig(mixture="python_text", objective="masked", extra_ids=1, sequence_length=128, batch_size=16),
        optimizer=OptimizerConfig(
            name="adamw", schedule="cosine", learning_rate=2e-3, warmup_steps=40, beta2=0.95, weight_decay=0.1
        ),
        train=TrainConfig(num_steps=400, precision="fp32", eval_every=100, checkpoint_every=200),
    )
