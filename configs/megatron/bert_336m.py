"""Megatron-LM's BERT of 336M: pathways-lm train configs/megatron/bert_336m.py

Reproduces: BERT 336M (arXiv:1909.08053, table 4): norms in front, batch 1,024, rate 1e-4, 2 M steps, linear to 0.
The paper's sentence-order task is not trained here.
Needs: an accelerator mesh that holds it, and a corpus and vocabulary: --set data.files=… --set data.vocabulary=….
"""

from pathways_lm.config import DataConfig, Experiment, MeshConfig, OptimizerConfig, TrainConfig
from pathways_lm.models.presets import megatron_bert


def experiment() -> Experiment:
    return Experiment(
        name="megatron-bert-336m",
        model=megatron_bert(24, 1024, 16),
        mesh=MeshConfig(data=-1, tensor=1, rules="tensor_parallel"),
        data=DataConfig(objective="masked", extra_ids=1, sequence_length=512, batch_size=1024),
        optimizer=OptimizerConfig(
            name="adamw",
            schedule="linear",
            final_fraction=0.0,
            learning_rate=1e-4,
            warmup_steps=10_000,
            beta2=0.999,
            weight_decay=0.01,
        ),
        train=TrainConfig(num_steps=2_000_000, precision="bf16", z_loss=0.0, eval_every=1000, checkpoint_every=1000),
    )
