"""ST-MoE's Dense-L: pathways-lm train configs/st_moe/dense_l.py

Reproduces: the dense baseline of ST-MoE (arXiv:2202.08906, table 11): 0.8 B parameters, 27 layers a tower.
Needs: an accelerator mesh that holds it, and a corpus and vocabulary: --set data.files=… --set data.vocabulary=….
"""

from pathways_lm.config import DataConfig, Experiment, MeshConfig, OptimizerConfig, TrainConfig
from pathways_lm.models.presets import st_moe


def experiment() -> Experiment:
    return Experiment(
        name="st-moe-dense-l",
        model=st_moe(16, num_layers=27, embed_dim=1024, mlp_dim=2816),
        mesh=MeshConfig(data=-1, rules="palm_2d"),
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
        train=TrainConfig(num_steps=500_000, precision="bf16", eval_every=1000, checkpoint_every=1000),
    )
