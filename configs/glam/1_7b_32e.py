"""GLaM 1.7B/32E: pathways-lm train configs/glam/1_7b_32e.py

Reproduces: GLaM 1.7B/32E (arXiv:2112.06905, table 4): 20 B, 1.878 B active; a million tokens a batch of length 1,024.
Needs: an accelerator mesh that holds it, and a corpus and vocabulary: --set data.files=… --set data.vocabulary=….
"""

from pathways_lm.config import DataConfig, Experiment, MeshConfig, OptimizerConfig, TrainConfig
from pathways_lm.models.presets import glam


def experiment() -> Experiment:
    return Experiment(
        name="glam-1-7b-32e",
        model=glam(16, 32, num_layers=24, embed_dim=2048, mlp_dim=8192),
        mesh=MeshConfig(data=-1, expert=32, rules="palm_2d"),
        data=DataConfig(sequence_length=1024, batch_size=1024),
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
        train=TrainConfig(num_steps=570_000, precision="bf16", z_loss=0.0, eval_every=1000, checkpoint_every=1000),
    )
