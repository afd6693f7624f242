"""Compile time of 118 layers against 2: python -m benchmarks.compile_time

The layers are scanned, so that the compiler sees one; 118 are PaLM-540B's. All are compiled in turn, without a cache;
medians. What a second start finds compiled is measured by `benchmarks.startup`.
"""

import argparse
import dataclasses
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from benchmarks.side_by_side import write
from pathways_lm.config import MeshConfig, ModelConfig, OptimizerConfig, TrainConfig
from pathways_lm.mesh import make_mesh
from pathways_lm.models.batch import Batch
from pathways_lm.models.model import Model
from pathways_lm.sharding import make_rules
from pathways_lm.train.optimizer import make_optimizer
from pathways_lm.train.schedule import make_schedule
from pathways_lm.train.step import compile_step, make_step


def seconds_to_compile(config: ModelConfig) -> float:
    """Wall-clock seconds from nothing to a compiled training step."""
    jax.clear_caches()
    began = time.perf_counter()
    model = Model(config, make_rules("palm_2d", make_mesh(MeshConfig(data=1))))
    schedule = make_schedule(OptimizerConfig(), 1)
    optimizer = make_optimizer(OptimizerConfig(), schedule, model)
    tokens = jax.ShapeDtypeStruct((8, 128), jnp.int32)
    compile_step(
        make_step(model, optimizer, schedule, TrainConfig(num_steps=1)), model, optimizer, Batch(tokens, tokens)
    )
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/compile_time.json"))
    arguments = parser.parse_args()
    shallow = ModelConfig(num_layers=2, embed_dim=128, num_heads=4, head_dim=32, mlp_dim=512, vocab_size=1024)
    depths = (2, 32, 118)
    seconds: dict[int, list[float]] = {depth: [] for depth in depths}
    for repeat in range(arguments.repeats + 1):
        for depth in depths:
            took = seconds_to_compile(dataclasses.replace(shallow, num_layers=depth))
            # The first ones warm up imports and the compiler itself.
            if repeat:
                seconds[depth].append(took)
    medians = {depth: statistics.median(values) for depth, values in seconds.items()}
    ratios = {depth: median / medians[2] for depth, median in medians.items()}
    print("  ".join(f"{depth} layers {medians[depth]:.2f} s ({ratios[depth]:.2f})" for depth in depths))
    write(arguments.out, {"seconds": seconds, "medians": medians, "ratios": ratios})


if __name__ == "__main__":
    main()
