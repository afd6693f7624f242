"""The small T5, tuned to answer: pathways-lm train configs/t5/tiny_finetune.py

Needs the run it begins from, three minutes before: pathways-lm train configs/t5/tiny.py
Shows: fine-tuning of everything (arXiv:1910.10683, section 3.5.1) on three tasks whose answers are exact, at once:
sorting numbers or words, numbers in words, dates of eight languages as ISO 8601. Held-out inputs are answered greedily
at each validation, and the checkpoint with the best accuracy is kept.
Came out: exact match on held-out inputs from 0% to 100% (dates), 100% (numbers) and 53.2% (sorting) after 1,200 steps,
six to eleven minutes of two free cores: docs/finetuning.md.
"""

from pathways_lm.config import (
    DataConfig,
    Experiment,
    MeshConfig,
    MixingConfig,
    OptimizerConfig,
    TrainConfig,
)
from pathways_lm.models.presets import t5


def experiment() -> Experiment:
    return Experiment(
        name="t5-tiny-finetune",
        model=t5(
            4,
            num_layers=2,
            embed_dim=128,
            mlp_dim=512,
            vocab_size=4096,
            unroll=4,
            head_dim=32,
            dropout=0.0,
            hidden_dropout=0.0,
        ),
        mesh=MeshConfig(data=-1, rules="palm_2d"),
        data=DataConfig(
            mixture="exact_answers", objective="text_to_text", extra_ids=100, sequence_length=128, batch_size=16
        ),
        # Each task as often as the others.
        mixing=MixingConfig(rule="unimax"),
        optimizer=OptimizerConfig(
            name="adafactor", schedule="linear", learning_rate=2e-2, warmup_steps=50, final_fraction=0.02
        ),
        train=TrainConfig(
            init_from="runs/t5-tiny",
            num_steps=1200,
            precision="fp32",
            eval_every=200,
            evaluate_examples=200,
            checkpoint_every=200,
            checkpoints_best=1,
            checkpoints_best_by="accuracy",
        ),
    )
