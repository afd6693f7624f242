"""GShard MoE(128E, 12L): pathways-lm train configs/gshard/128e_12l.py

Reproduces: the architecture of MoE(128E, 12L) (arXiv:2006.16668, table 1): 12.5 B parameters, here in experts alone.
Its translation data of 100 languages is not at hand: span corruption stands in for it, one vocabulary for the two of
the paper.
Needs: an accelerator mesh that holds it, and a corpus and vocabulary: --set data.files=… --set data.vocabulary=….
"""

from pathways_lm.config import DataConfig, Experiment, MeshConfig, OptimizerConfig, TrainConfig
from pathways_lm.models.presets import gshard


def experiment() -> Experiment:
    return Experiment(
        name="gshard-128e-12l",
        model=gshard(128, 12),
        mesh=MeshConfig(data=-1, expert=128, rules="palm_2d", zero=0),
        data=DataConfig(objective="span_corruption", extra_ids=100, sequence_length=512, batch_size=2048),
        optimizer=OptimizerConfig(
            name="adafactor",
            factored=True,
            beta2_cap=0.99,
            update_clip=1.0,
            clip_norm=0.0,
            beta1=0.0,
            weight_decay=0.0,
            schedule="rsqrt",
            learning_rate=1e-2,
            hold_steps=10_000,
        ),
        train=TrainConfig(num_steps=240_000, precision="fp32", eval_every=1000, checkpoint_every=1000),
    )
