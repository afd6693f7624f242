"""A training step of a small decoder with experts beside the same in plain PyTorch: python -m benchmarks.moe_step

Same weights, tokens, AdamW and clip, the same balance loss, and the same tokens served: all (`dropless`), or those that
find a place (`einsum`, `all_to_all`). Steps alternate on the CPU, in processes as in `train_step`; medians and the
ratio of medians are printed, and written as JSON. Every dispatch of this project is measured; the fastest that serves
all is the one to compare.
"""

import argparse
from pathlib import Path

import jax
import numpy as np

from benchmarks.side_by_side import OURS, Steps, alternate, draw_tokens, our_step, peers, tell, torch_step, write
from benchmarks.torch_moe import MoEDecoder, load_moe
from pathways_lm.cli.cpu import fuse_chains, keep_memory
from pathways_lm.cli.devices import compiled_folder
from pathways_lm.config import DataConfig, MeshConfig, ModelConfig, MoEConfig
from pathways_lm.kernels.mkl import library
from pathways_lm.mesh import make_mesh
from pathways_lm.models.inventory import num_params
from pathways_lm.models.model import Model
from pathways_lm.sharding import make_rules


def measure(dispatch: str, top_k: int, precision: str, shape: tuple[int, int], repeats: int) -> dict:
    """Alternates steps of both; seconds of each, and their losses side by side."""
    moe = MoEConfig(num_experts=8, top_k=top_k, every=2, dispatch=dispatch, renormalise=top_k > 1)
    config = ModelConfig(
        num_layers=4, embed_dim=256, num_heads=4, head_dim=64, mlp_dim=1024, vocab_size=4096, unroll=2, moe=moe
    )
    model = Model(config, make_rules("palm_2d", make_mesh(MeshConfig(data=1))))
    tokens_BL = draw_tokens(config, shape)
    ours, params, _ = our_step(model, precision, tokens_BL)
    with peers(their_step, config, jax.device_get(params), precision, tokens_BL) as theirs:
        figures = alternate({OURS: ours, **theirs}, precision, repeats)
    name = f"top-{top_k} {dispatch} {precision}"
    return {"name": name, "dispatch": dispatch, "top_k": top_k, **figures, "parameters": num_params(model)}


def their_step(config: ModelConfig, params: dict, precision: str, tokens_BL: np.ndarray) -> Steps:
    """PyTorch's."""
    model = MoEDecoder(config)
    load_moe(model, params)
    return torch_step(model, precision, tokens_BL, model.balance)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--dispatch", nargs="+", default=["dropless", "all_to_all", "einsum"])
    parser.add_argument("--top-k", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--precision", nargs="+", default=["fp32"])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/moe_step.json"))
    arguments = parser.parse_args()
    keep_memory()
    fuse_chains()
    print(f"products: {library.load(compiled_folder(DataConfig().cache_dir))}")
    rows = [
        measure(dispatch, top_k, precision, (8, 256), arguments.repeats)
        for precision in arguments.precision
        for top_k in arguments.top_k
        for dispatch in arguments.dispatch
    ]
    print(f"{rows[0]['parameters']:,} parameters, 8 experts in every second of 4 layers, batch 8 x 256")
    tell(rows, "name")
    write(arguments.out, {"batch": [8, 256], "rows": rows})


if __name__ == "__main__":
    main()
