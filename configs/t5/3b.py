"""T5 3b: pathways-lm train configs/t5/3b.py

Reproduces: T5 3b (arXiv:1910.10683, section 3.7): 2.85 B parameters, a million steps of 2,048 sequences of span
corruption.
Needs: an accelerator mesh that holds it, and a corpus and vocabulary: --set data.files=… --set data.vocabulary=….
"""

from pathways_lm.config import DataConfig, Experiment, MeshConfig, OptimizerConfig, TrainConfig
from pathways_lm.models.presets import t5


def experiment() -> Experiment:
    return Experiment(
        name="t5-3b",
        model=t5(32, num_layers=24, embed_dim=1024, mlp_dim=16384, head_dim=128),
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
