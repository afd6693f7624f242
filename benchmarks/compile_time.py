"""Compile time of 32 layers against 2: python -m benchmarks.compile_time

The layers are scanned, so that the compiler sees one. Both are compiled in turn, without a cache; medians.
"""

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp

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
    deep = dataclasses.replace(shallow, num_layers=32)
    seconds: dict[int, list[float]] = {2: [], 32: []}
    for repeat in range(arguments.repeats + 1):
        for config in (shallow, deep):
            took = seconds_to_compile(config)
            # The first pair warms up imports and the compiler itself.
            if repeat:
                seconds[config.num_layers].append(took)
    medians = {layers: statistics.median(values) for layers, values in seconds.items()}
    ratio = medians[32] / medians[2]
    print(f"2 layers {medians[2]:.2f} s, 32 layers {medians[32]:.2f} s, ratio {ratio:.2f}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"jax": jax.__version__, "seconds": seconds, "ratio": ratio}, indent=1) + "\n")


if __name__ == "__main__":
    main()
