"""PaLM 8B: pathways-lm train configs/palm/8b.py

Reproduces: PaLM 8B (arXiv:2204.02311, table 1 and section 5): 8.63 B parameters, 256k vocabulary, length 2,048.
Needs: an accelerator mesh with about 104 GB for parameters and Adafactor's two moments in fp32, and the corpus and its
SentencePiece vocabulary named with --set data.files=… --set data.vocabulary=….
The paper's batch grows from 256 to 512 sequences; this is the final one.
"""

from pathways_lm.config import DataConfig, Experiment, MeshConfig, ModelConfig, OptimizerConfig, TrainConfig


def experiment() -> Experiment:
    return Experiment(
        name="palm-8b",
        model=ModelConfig(
            num_layers=32,
            embed_dim=4096,
            num_heads=16,
            head_dim=256,
            mlp_dim=16384,
            vocab_size=256_000,
            remat="attention",
        ),
        mesh=MeshConfig(data=-1, tensor=1, rules="palm_2d"),
        data=DataConfig(sequence_length=2048, batch_size=512),
        optimizer=OptimizerConfig(name="adafactor", schedule="rsqrt", learning_rate=1e-2, hold_steps=10_000),
        train=TrainConfig(num_steps=744_000, precision="bf16", z_loss=1e-4, eval_every=1000, checkpoint_every=1000),
    )
