"""UL2 20B: pathways-lm train configs/t5/ul2_20b.py

Reproduces: UL2 20B (arXiv:2205.05131): 19.46 B parameters, its mixture of denoisers with mode tokens.
Needs: an accelerator mesh that holds it, and a corpus and vocabulary: --set data.files=… --set data.vocabulary=….
"""

from pathways_lm.config import DataConfig, Experiment, MeshConfig, OptimizerConfig, TrainConfig
from pathways_lm.models.presets import ul2


def experiment() -> Experiment:
    return Experiment(
        name="t5-ul2-20b",
        model=ul2(16, num_layers=32, embed_dim=4096, mlp_dim=16384, head_dim=256),
        mesh=MeshConfig(data=-1, tensor=8, rules="palm_2d"),
        data=DataConfig(objective="ul2", extra_ids=100, sequence_length=512, batch_size=1024),
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
        train=TrainConfig(num_steps=2_650_000, precision="bf16", eval_every=1000, checkpoint_every=1000),
    )
