"""Megatron-Turing NLG 530B: pathways-lm train configs/mt_nlg/530b.py

Reproduces: MT-NLG (arXiv:2201.11990, section 3): 105 layers, 20,480 wide, 128 heads, batch 1,920 of length 2,048, rate
5e-5 with a cosine to a tenth, AdamW 0.9/0.95, weight decay 0.1. It warms up over 1 B tokens (255 steps at the full
batch, which the paper has after 12 B). Its 35 pipeline stages share the vocabulary, whose rows they must divide:
--set mesh.stage=35 --set model.vocab_size=51240 --set train.microbatches=240 --set model.remat=none
--set mesh.rules=tensor_parallel --set mesh.zero=1. Without stages, parameters are cut over the data axis.
Needs: an accelerator mesh that holds it, and a corpus and vocabulary: --set data.files=… --set data.vocabulary=….
"""

from pathways_lm.config import DataConfig, Experiment, MeshConfig, OptimizerConfig, TrainConfig
from pathways_lm.models.presets import megatron_turing


def experiment() -> Experiment:
    return Experiment(
        name="mt-nlg-530b",
        model=megatron_turing(105, 20480, 128, remat="block"),
        mesh=MeshConfig(data=-1, tensor=8, rules="palm_2d"),
        data=DataConfig(sequence_length=2048, batch_size=1920),
        optimizer=OptimizerConfig(
            name="adamw",
            schedule="cosine",
            learning_rate=5e-5,
            warmup_tokens=1_000_000_000,
            beta2=0.95,
            weight_decay=0.1,
        ),
        train=TrainConfig(num_steps=86_000, precision="bf16", z_loss=0.0, eval_every=1000, checkpoint_every=1000),
    )
