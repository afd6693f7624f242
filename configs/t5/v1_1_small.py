"""T5 1.1 small: pathways-lm train configs/t5/v1_1_small.py

Reproduces: T5 1.1 small, released with arXiv:2002.05202: GEGLU, untied, no dropout. The recipe is T5's.
Needs: an accelerator mesh that holds it, and a corpus and vocabulary: --set data.files=… --set data.vocabulary=….
"""

from pathways_lm.config import DataConfig, Experiment, MeshConfig, OptimizerConfig, TrainConfig
from pathways_lm.models.presets import t5_1_1


def experiment() -> Experiment:
    return Experiment(
        name="t5-v1-1-small",
        model=t5_1_1(6, num_layers=8, embed_dim=512, mlp_dim=1024),
        mesh=MeshConfig(data=-1, tensor=1, rules="palm_2d"),
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
        train=TrainConfig(num_steps=1_000_000, precision="bf16", eval_every=1000, checkpoint_every=1000),
    )
