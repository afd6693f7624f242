"""What the training loop adds to its compiled step: python -m benchmarks.host_overhead

The tiny config's loop, with its real loader and metrics written to a file, beside the same compiled step called again
and again on one batch that is already in place. Both in turn, several times; medians.
"""

import argparse
import json
import statistics
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from pathways_lm.configure import load
from pathways_lm.data.cache import prepare
from pathways_lm.data.loader import Loader
from pathways_lm.mesh import make_mesh
from pathways_lm.models.decoder import Model
from pathways_lm.sharding import make_rules
from pathways_lm.train.log import Log
from pathways_lm.train.loop import Hooks, Workload, run
from pathways_lm.train.optimizer import make_optimizer
from pathways_lm.train.schedule import make_schedule
from pathways_lm.train.state import initial_state
from pathways_lm.train.step import compile_step, make_step


class NoStore:
    """Keeps nothing: checkpoints are measured elsewhere."""

    folder = Path("none/checkpoints")

    def save(self, step: int, items: Any, facts: Any) -> None:
        return None

    def wait(self) -> None:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/host_overhead.json"))
    arguments = parser.parse_args()
    steps = arguments.steps
    config = "configs/palm/tiny.py"
    experiment = load(
        config, [f"train.num_steps={steps}", "train.eval_every=1000000", "train.checkpoint_every=1000000"]
    )
    model = Model(experiment.model, make_rules(experiment.mesh.rules, make_mesh(experiment.mesh)))
    schedule = make_schedule(experiment.optimizer, steps)
    optimizer = make_optimizer(experiment.optimizer, schedule, model)
    loader = Loader(prepare(experiment.data, experiment.model.vocab_size), experiment.data)
    shape = (experiment.data.batch_size, experiment.data.sequence_length)
    sharding = model.rules("batch", "length")
    compiled = compile_step(make_step(model, optimizer, schedule, experiment.train), model, optimizer, shape)
    batch = loader.batch(0, sharding)
    hooks = Hooks(lambda params: {"loss": 0.0, "bits_per_byte": 0.0}, lambda *unused: ("", ""), {})
    workload = Workload(shape[0] * shape[1], 1.0, None)
    seconds: dict[str, list[float]] = {"loop": [], "bare": []}
    with tempfile.TemporaryDirectory() as folder:
        files = (Path(folder, "metrics"), Path(folder, "samples"), Path(folder, "tensorboard"))
        for repeat in range(arguments.repeats + 1):
            state = initial_state(model, optimizer, 0)
            with (
                Log(*files, Console(quiet=True), steps, 0) as log,
                closing(loader.batches(0, sharding)) as batches,
            ):
                jax.block_until_ready(state)
                began = time.perf_counter()
                state, _ = run(experiment.train, state, compiled, batches, NoStore(), {}, log, workload, hooks)
                jax.block_until_ready(state)
                loop = time.perf_counter() - began
            state = jax.block_until_ready(initial_state(model, optimizer, 0))
            began = time.perf_counter()
            for _ in range(steps):
                state, metrics = compiled(state, batch)
            jax.block_until_ready((state, metrics))
            bare = time.perf_counter() - began
            if repeat:
                seconds["loop"].append(loop / steps)
                seconds["bare"].append(bare / steps)
    overheads = [a / b - 1 for a, b in zip(seconds["loop"], seconds["bare"], strict=True)]
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"a step in the loop {medians['loop'] * 1e3:.0f} ms, bare {medians['bare'] * 1e3:.0f} ms")
    print(
        f"overhead, median of pairs {statistics.median(overheads):.1%} ({min(overheads):.1%} to {max(overheads):.1%})"
    )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"jax": jax.__version__, "seconds": seconds, "overheads": overheads}) + "\n")


if __name__ == "__main__":
    main()
