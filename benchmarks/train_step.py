"""A training step of a small decoder beside the same model in plain PyTorch: python -m benchmarks.train_step

Same weights, same tokens, the same AdamW with the same global-norm clip, on the CPU. Steps alternate, so that whatever
else the machine does falls on both; medians and the ratio of medians are printed, and written as JSON. Each side has a
process of its own, this project's with the settings of `pathways-lm train`, and PyTorch two, without those of memory
and with them, of which the faster counts.
"""

import argparse
from pathlib import Path

import jax
import numpy as np

from benchmarks.side_by_side import OURS, Steps, alternate, draw_tokens, our_step, peers, tell, torch_step, write
from benchmarks.torch_decoder import Decoder, load
from pathways_lm.cli.cpu import fuse_chains, keep_memory
from pathways_lm.cli.devices import compiled_folder
from pathways_lm.config import DataConfig, MeshConfig, ModelConfig
from pathways_lm.kernels.mkl import library
from pathways_lm.mesh import make_mesh
from pathways_lm.models.inventory import num_params
from pathways_lm.models.model import Model
from pathways_lm.sharding import make_rules


def measure(precision: str, config: ModelConfig, shape: tuple[int, int], repeats: int) -> dict:
    """Alternates steps of both; seconds of each, and their losses side by side."""
    model = Model(config, make_rules("palm_2d", make_mesh(MeshConfig(data=1))))
    tokens_BL = draw_tokens(config, shape)
    ours, params, _ = our_step(model, precision, tokens_BL)
    with peers(their_step, config, jax.device_get(params), precision, tokens_BL) as theirs:
        figures = alternate({OURS: ours, **theirs}, precision, repeats)
    return {**figures, "parameters": num_params(model)}


def their_step(config: ModelConfig, params: dict, precision: str, tokens_BL: np.ndarray) -> Steps:
    """PyTorch's."""
    model = Decoder(config)
    load(model, params)
    return torch_step(model, precision, tokens_BL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--unroll", type=int, default=5)
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/train_step.json"))
    arguments = parser.parse_args()
    keep_memory()
    fuse_chains()
    print(f"products: {library.load(compiled_folder(DataConfig().cache_dir))}")
    config = ModelConfig(
        num_layers=arguments.layers,
        embed_dim=384,
        num_heads=6,
        head_dim=64,
        mlp_dim=1536,
        vocab_size=8192,
        unroll=arguments.unroll,
    )
    rows = [measure(precision, config, (8, 256), arguments.repeats) for precision in arguments.precision]
    print(f"{rows[0]['parameters']:,} parameters, batch 8 x 256")
    tell(rows, "precision")
    write(arguments.out, {"batch": [8, 256], "rows": rows})


if __name__ == "__main__":
    main()
