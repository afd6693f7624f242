"""Memory and time of a training step by length, with attention that holds its scores and with that which does not.

    python -m benchmarks.long_attention [--lengths 2048 4096 8192 16384]

A decoder of two layers on one device, two packed sequences a step, a vocabulary so small that logits do not matter.
Prints a table and writes benchmarks/results/long_attention.json. Steps that need more than 8 GiB are not run.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import jax
import numpy as np

from pathways_lm.config import MeshConfig, ModelConfig, OptimizerConfig, TrainConfig
from pathways_lm.mesh import make_mesh
from pathways_lm.models.batch import Batch
from pathways_lm.models.model import Model
from pathways_lm.sharding import make_rules
from pathways_lm.train.optimizer import make_optimizer
from pathways_lm.train.schedule import make_schedule
from pathways_lm.train.state import initial_state
from pathways_lm.train.step import compile_step, make_step

ATTENTIONS = ("plain", "blocked")
MIB = 2**20
ROWS = 2
MOST_BYTES = 8 * 2**30


def measured(attention: str, length: int, repeats: int) -> dict:
    """Temporary memory of a step by the compiler, and the median of its seconds."""
    config = ModelConfig(
        num_layers=2, embed_dim=128, num_heads=4, head_dim=32, mlp_dim=256, vocab_size=260, attention=attention
    )
    model = Model(config, make_rules("palm_2d", make_mesh(MeshConfig(data=1))))
    schedule = make_schedule(OptimizerConfig(), 100)
    optimizer = make_optimizer(OptimizerConfig(), schedule, model)
    random = np.random.default_rng(0)
    tokens = random.integers(1, 260, (ROWS, length), dtype=np.int32)
    segments = np.sort(random.integers(1, 4, (ROWS, length), dtype=np.int32), axis=1)
    batch = jax.device_put(Batch(tokens, tokens, segments), model.rules("batch", None))
    step = compile_step(make_step(model, optimizer, schedule, TrainConfig(num_steps=100)), model, optimizer, batch)
    held = step.memory_analysis().temp_size_in_bytes
    found = {"attention": attention, "length": length, "temporary_MiB": round(held / MIB, 1), "seconds": None}
    if held <= MOST_BYTES:
        state, seconds = initial_state(model, optimizer, 0), []
        for _ in range(repeats + 1):
            began = time.perf_counter()
            state, metrics = step(state, batch)
            found["loss"] = float(metrics["loss"])
            seconds.append(time.perf_counter() - began)
        # The first step warms up.
        found["seconds"] = round(statistics.median(seconds[1:]), 3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 4096, 8192, 16384])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/long_attention.json"))
    arguments = parser.parse_args()
    rows = []
    print("| length | attention | temporary memory | a step |\n|---|---|---|---|")
    for length in arguments.lengths:
        for attention in ATTENTIONS:
            row = measured(attention, length, arguments.repeats)
            rows.append(row)
            took = "not run" if row["seconds"] is None else f"{row['seconds']:.2f} s"
            print(f"| {length:,} | {attention} | {row['temporary_MiB']:,} MiB | {took} |", flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"jax": jax.__version__, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
