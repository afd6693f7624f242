"""Switch-C: pathways-lm train configs/switch/c.py

Reproduces: Switch-C (arXiv:2101.03961, table 9): 1,571 B parameters, a million tokens a batch of C4 span corruption.
Every layer has experts, no tensor parallelism; 32 heads and an untied head give the printed count.
Needs: an accelerator mesh that holds it, and a corpus and vocabulary: --set data.files=… --set data.vocabulary=….
"""

from pathways_lm.config import DataConfig, Experiment, MeshConfig, OptimizerConfig, TrainConfig
from pathways_lm.models.presets import switch


def experiment() -> Experiment:
    return Experiment(
        name="switch-c",
        model=switch(
            32,
            2048,
            every=1,
            moe={"capacity_factor": 1.0, "min_capacity": 2, "group_tokens": 2048},
            num_layers=15,
            embed_dim=2080,
            mlp_dim=6144,
            tied_head=False,
            scaled_logits=False,
        ),
        mesh=MeshConfig(data=-1, expert=1024, rules="palm_2d", zero=0),
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
        train=TrainConfig(num_steps=550_000, precision="bf16", eval_every=1000, checkpoint_every=1000),
    )
