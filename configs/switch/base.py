"""Switch-Base: pathways-lm train configs/switch/base.py

Reproduces: Switch-Base (arXiv:2101.03961, table 9): 7 B (7.42 B) parameters, a million tokens a batch of C4 span
corruption.
Needs: an accelerator mesh that holds it, and a corpus and vocabulary: --set data.files=… --set data.vocabulary=….
"""

from pathways_lm.config import DataConfig, Experiment, MeshConfig, OptimizerConfig, TrainConfig
from pathways_lm.models.presets import switch


def experiment() -> Experiment:
    return Experiment(
        name="switch-base",
        model=switch(
            12, 128, num_layers=12, embed_dim=768, mlp_dim=2048, activation="geglu", moe={"group_tokens": 8192}
        ),
        mesh=MeshConfig(data=-1, expert=16, rules="palm_2d"),
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
