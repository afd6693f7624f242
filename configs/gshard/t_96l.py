"""GShard T(96L): pathways-lm train configs/gshard/t_96l.py

Reproduces: the dense baseline of 96 layers (arXiv:2006.16668, table 1): 2.3 B parameters printed.
Needs: an accelerator mesh that holds it, and a corpus and vocabulary: --set data.files=… --set data.vocabulary=….
"""

from pathways_lm.config import DataConfig, Experiment, MeshConfig, OptimizerConfig, TrainConfig
from pathways_lm.models.presets import t5


def experiment() -> Experiment:
    return Experiment(
        name="gshard-t-96l",
        model=t5(16, num_layers=48, embed_dim=1024, mlp_dim=8192, head_dim=128, vocab_size=96_000),
        mesh=MeshConfig(data=-1, rules="palm_2d"),
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
        train=TrainConfig(num_steps=500_000, precision="fp32", eval_every=1000, checkpoint_every=1000),
    )
