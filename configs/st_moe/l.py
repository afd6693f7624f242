"""ST-MoE-L: pathways-lm train configs/st_moe/l.py

Reproduces: ST-MoE-L (arXiv:2202.08906, table 11): 4.1 B parameters. The table's 27 layers are 24 and 3 extra dense
ones behind the 6 sparse of each tower; 24 and 24 give the printed count.
Needs: an accelerator mesh that holds it, and a corpus and vocabulary: --set data.files=… --set data.vocabulary=….
"""

from pathways_lm.config import DataConfig, Experiment, MeshConfig, OptimizerConfig, TrainConfig
from pathways_lm.models.presets import st_moe


def experiment() -> Experiment:
    return Experiment(
        name="st-moe-l",
        model=st_moe(16, 32, num_layers=24, embed_dim=1024, mlp_dim=2816),
        mesh=MeshConfig(data=-1, expert=32, rules="palm_2d"),
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
