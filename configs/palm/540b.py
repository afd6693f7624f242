"""PaLM 540B: pathways-lm train configs/palm/540b.py

Reproduces: PaLM 540B (arXiv:2204.02311, table 1 and section 5): 540.35 B parameters, 256k vocabulary, length 2,048.
Needs: an accelerator mesh with about 6.5 TB for parameters and Adafactor's two moments in fp32, and the corpus and its
SentencePiece vocabulary named with --set data.files=… --set data.vocabulary=….
The paper's batch grows from 512 over 1,024 to 2,048 sequences; this is the final one.
The paper's 12-way tensor axis does not divide 256,000 rows, so this one is 8-way; for 12, add 8 unused rows:
--set mesh.tensor=12 --set model.vocab_size=256008.
"""

from pathways_lm.config import DataConfig, Experiment, MeshConfig, ModelConfig, OptimizerConfig, TrainConfig


def experiment() -> Experiment:
    return Experiment(
        name="palm-540b",
        model=ModelConfig(
            num_layers=118,
            embed_dim=18432,
            num_heads=48,
            head_dim=256,
            mlp_dim=73728,
            vocab_size=256_000,
            remat="block",
        ),
        mesh=MeshConfig(data=-1, tensor=8, rules="palm_2d"),
        data=DataConfig(sequence_length=2048, batch_size=2048),
        optimizer=OptimizerConfig(name="adafactor", schedule="rsqrt", learning_rate=1e-2, hold_steps=10_000),
        train=TrainConfig(num_steps=255_000, precision="bf16", z_loss=1e-4, eval_every=1000, checkpoint_every=1000),
    )
