"""The dense T5-XXL of the Switch paper: pathways-lm train configs/switch/t5_xxl.py

Reproduces: the dense baseline of table 9 (arXiv:2101.03961): 11 B parameters, GEGLU.
Needs: an accelerator mesh that holds it, and a corpus and vocabulary: --set data.files=… --set data.vocabulary=….
"""

from pathways_lm.config import DataConfig, Experiment, MeshConfig, OptimizerConfig, TrainConfig
from pathways_lm.models.presets import t5


def experiment() -> Experiment:
    return Experiment(
        name="switch-t5-xxl",
        model=t5(
            64,
            num_layers=24,
            embed_dim=4096,
            mlp_dim=10240,
            activation="geglu",
            dropout=0.0,
            hidden_dropout=0.0,
            tied_head=False,
            scaled_logits=False,
        ),
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
        train=TrainConfig(num_steps=550_000, precision="bf16", eval_every=1000, checkpoint_every=1000),
    )
