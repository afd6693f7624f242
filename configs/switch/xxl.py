"""Switch-XXL: pathways-lm train configs/switch/xxl.py

Reproduces: Switch-XXL (arXiv:2101.03961, table 9): 395 B parameters, a million tokens a batch of C4 span corruption.
Table 9 says 64 experts, which would be 201 B; the printed 395 B needs 128.
Needs: an accelerator mesh that holds it, and a corpus and vocabulary: --set data.files=… --set data.vocabulary=….
"""

from pathways_lm.config import DataConfig, Experiment, MeshConfig, OptimizerConfig, TrainConfig
from pathways_lm.models.presets import switch


def experiment() -> Experiment:
    return Experiment(
        name="switch-xxl",
        model=switch(
            64,
            128,
            moe={"eval_capacity_factor": 4.0, "min_capacity": 2, "group_tokens": 4096},
            num_layers=24,
            embed_dim=4096,
            mlp_dim=10240,
            activation="geglu",
            tied_head=False,
            scaled_logits=False,
        ),
        mesh=MeshConfig(data=-1, expert=128, tensor=8, rules="palm_2d"),
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
