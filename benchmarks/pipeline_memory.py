"""What a step of a pipeline needs besides parameters and optimizer, by schedule and number of microbatches.

    python -m benchmarks.pipeline_memory

Compiles each for four A100s, without one (`make compilers`). Microbatches keep their size, so the batch grows with the
number of them. Writes benchmarks/results/pipeline_memory.json and docs/pipeline-memory.png.
"""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import jax
import matplotlib.pyplot as plt

from pathways_lm.config import DataConfig, Experiment, MeshConfig, OptimizerConfig, TrainConfig
from pathways_lm.models.presets import megatron_turing
from pathways_lm.pipeline.timetable import Timetable
from pathways_lm.plan.machine import parse_machine
from pathways_lm.plan.plan import make_plan

RESULTS = Path(__file__).parent / "results" / "pipeline_memory.json"
PLOT = Path("docs/pipeline-memory.png")
STAGES, ROWS, LENGTH = 4, 4, 1024
MICROBATCHES = (4, 8, 16, 32)
SCHEDULES = {"GPipe": ("gpipe", 1), "interleaved GPipe, 2 chunks": ("gpipe", 2), "1F1B": ("1f1b", 1)}
SCHEDULES |= {"interleaved 1F1B, 2 chunks": ("1f1b", 2)}


def needed(pipeline: str, chunks: int, microbatches: int) -> float:
    """Bytes of one device besides parameters, optimizer and batch."""
    experiment = Experiment(
        name="pipeline-memory",
        model=megatron_turing(8, 1024, 16),
        mesh=MeshConfig(data=1, stage=STAGES, chunks=chunks, rules="tensor_parallel", zero=0),
        data=DataConfig(sequence_length=LENGTH, batch_size=ROWS * microbatches),
        optimizer=OptimizerConfig(name="adamw"),
        train=TrainConfig(num_steps=10, microbatches=microbatches, pipeline=pipeline, precision="bf16"),
    )
    memory = make_plan(experiment, parse_machine("a100:1x4")).memory
    return memory.gradients + memory.rest


def main() -> None:
    jax.config.update("jax_platforms", "cpu")
    found: dict[str, dict[int, float]] = {}
    print("| schedule | " + " | ".join(f"m = {m}" for m in MICROBATCHES) + " | stage inputs that wait |")
    print("|---|" + "---|" * (len(MICROBATCHES) + 1))
    for name, (pipeline, chunks) in SCHEDULES.items():
        found[name] = {m: needed(pipeline, chunks, m) for m in MICROBATCHES}
        waiting = [Timetable(pipeline, STAGES, chunks, m).input_slots(0) for m in MICROBATCHES]
        cells = " | ".join(f"{size / 2**30:.2f} GiB" for size in found[name].values())
        print(f"| {name} | {cells} | {', '.join(map(str, waiting))} |", flush=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    figure, axes = plt.subplots(figsize=(7, 4))
    for name, sizes in found.items():
        axes.plot(list(sizes), [size / 2**30 for size in sizes.values()], marker="o", label=name)
    axes.set(xlabel="microbatches of a step", ylabel="GiB of a device", ylim=(0, None), xticks=MICROBATCHES)
    axes.set_title("Besides parameters and optimizer: 4 stages, 4 x 1,024 tokens a microbatch")
    axes.legend()
    figure.tight_layout()
    figure.savefig(PLOT, dpi=120)


if __name__ == "__main__":
    main()
