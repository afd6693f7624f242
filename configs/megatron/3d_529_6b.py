"""Megatron's 529.6B: pathways-lm train configs/megatron/3d_529_6b.py

Reproduces: the model of 529.6B (arXiv:2104.04473, table 1): batch 2,520 of length 2,048, 8-way tensor parallel. Its 35
pipeline stages share the vocabulary, whose rows they must divide: --set mesh.stage=35 --set model.vocab_size=51240
--set train.microbatches=280 --set model.remat=none. Without stages, parameters are cut over the data axis.
Needs: an accelerator mesh that holds it, and a corpus and vocabulary: --set data.files=… --set data.vocabulary=….
"""

from pathways_lm.config import DataConfig, Experiment, MeshConfig, OptimizerConfig, TrainConfig
from pathways_lm.models.presets import megatron_turing


def experiment() -> Experiment:
    return Experiment(
        name="megatron-3d-529-6b",
        model=megatron_turing(105, 20480, 128, remat="block"),
        mesh=MeshConfig(data=-1, tensor=8, rules="palm_2d"),
        data=DataConfig(sequence_length=2048, batch_size=2520),
        optimizer=OptimizerConfig(
            name="adamw", schedule="cosine", learning_rate=1.5e-4, warmup_steps=3_000, weight_decay=0.1
        ),
        train=TrainConfig(num_steps=300_000, precision="bf16", z_loss=0.0, eval_every=1000, checkpoint_every=1000),
    )
