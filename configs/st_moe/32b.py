"""ST-MoE-32B: pathways-lm train configs/st_moe/32b.py

Reproduces: ST-MoE-32B (arXiv:2202.08906, table 11): 269 B parameters, 1.5 T tokens of 1 M a batch.
Needs: an accelerator mesh that holds it, and a corpus and vocabulary: --set data.files=… --set data.vocabulary=….
"""

from pathways_lm.config import DataConfig, Experiment, MeshConfig, OptimizerConfig, TrainConfig
from pathways_lm.models.presets import st_moe


def experiment() -> Experiment:
    return Experiment(
        name="st-moe-32b",
        model=st_moe(64, 64, num_layers=24, embed_dim=5120, mlp_dim=20480, head_dim=128),
        mesh=MeshConfig(data=-1, expert=64, tensor=16, rules="palm_2d"),
        data=DataConfig(objective="span_corruption", extra_ids=100, sequence_length=512, batch_size=2048),
        optimizer=OptimizerConfig(
            name="adafactor",
            factored=True,
            update_clip=1.0,
            clip_norm=0.0,
            beta1=0.0,
            weight_decay=0.0,
            schedule="rsqrt",
            learning_rate=1e-2,
            hold_steps=10_000,
        ),
        train=TrainConfig(num_steps=1_430_000, precision="bf16", eval_every=1000, checkpoint_every=1000),
    )
