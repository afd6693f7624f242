"""What the training loop costs the host, beside its compiled step: python -m benchmarks.host_overhead

Three things in turn, several times, with the tiny config: the compiled step called again and again on one batch that
is in place (`bare`); the whole loop with its loader, metrics and log (`loop`); and the same loop around a step that
returns at once (`host`). What the host needs for a step is hidden behind the device as long as it is shorter. On a CPU
the two share the cores, and `loop` against `bare` shows what is left of it, and the machine's noise. Of the loop's time
the share is told, too, in which it waits for batches.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from benchmarks.side_by_side import write
from pathways_lm.configure import load
from pathways_lm.data.balance import Balance
from pathways_lm.data.cache import prepare
from pathways_lm.data.course import Course
from pathways_lm.data.loader import Loader
from pathways_lm.data.objectives import make_objective
from pathways_lm.mesh import make_mesh
from pathways_lm.models.batch import Batch
from pathways_lm.models.model import Model
from pathways_lm.sharding import rules_of
from pathways_lm.train.books import Books
from pathways_lm.train.log import Log
from pathways_lm.train.loop import Hooks, Loop
from pathways_lm.train.meter import Workload
from pathways_lm.train.optimizer import make_optimizer
from pathways_lm.train.schedule import make_schedule
from pathways_lm.train.spikes import Rewinds, Spikes
from pathways_lm.train.state import TrainState, initial_state
from pathways_lm.train.step import Metrics, compile_step, make_step


class NoStore:
    """Keeps nothing: checkpoints are measured elsewhere."""

    folder = Path("none/checkpoints")

    def save(self, step: int, items: Any, facts: Any, figures: Any = None) -> None:
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
    model = Model(experiment.model, rules_of(experiment.mesh, make_mesh(experiment.mesh)))
    schedule = make_schedule(experiment.optimizer, steps)
    optimizer = make_optimizer(experiment.optimizer, schedule, model)
    corpus = prepare(experiment.data, experiment.model.vocab_size)
    balance = Balance(experiment.mixing, corpus.rates, dict.fromkeys(corpus.rates, 1), 1)
    objective = make_objective(experiment.data, corpus.vocabulary)
    loader = Loader(corpus, experiment.data, objective, balance.mixture)
    sharding = model.rules("batch", "length")
    example = loader.example(experiment.data.batch_size)
    compiled = compile_step(make_step(model, optimizer, schedule, experiment.train), model, optimizer, example)
    batch = loader.batch(0, sharding)
    hooks = Hooks(lambda params: {"loss": 0.0, "bits_per_byte": 0.0}, None, {})
    workload = Workload(experiment.data.sequence_length, 1.0, None, None, balance.mixture.tasks)
    seconds: dict[str, list[float]] = {"bare": [], "loop": [], "host": []}
    waits: list[float] = []
    state, metrics = jax.block_until_ready(compiled(initial_state(model, optimizer, 0), batch))

    def returns_at_once(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        return state, metrics

    with tempfile.TemporaryDirectory() as folder:
        files = (Path(folder, "metrics"), Path(folder, "samples"), Path(folder, "tensorboard"))
        for repeat in range(arguments.repeats + 1):
            for name, step in (("bare", compiled), ("loop", compiled), ("host", returns_at_once)):
                state = jax.block_until_ready(initial_state(model, optimizer, 0))
                began = time.perf_counter()
                if name == "bare":
                    for _ in range(steps):
                        state, _ = step(state, batch)
                else:
                    log = Log(*files, Console(quiet=True), steps, 0)
                    with log, Course(loader, balance, sharding) as course:
                        books = Books(time.perf_counter())
                        loop = Loop(
                            *(experiment.train, state, lambda rows, step=step: step, course, NoStore(), {}, log),
                            *(workload, hooks, books, Spikes(experiment.train)),
                            *(Rewinds(Path(folder, "rewinds")), lambda step, state=state: (state, {})),
                        )
                        state, _ = loop.run()
                jax.block_until_ready(state)
                took = time.perf_counter() - began
                if repeat:
                    seconds[name].append(took / steps)
                if repeat and name == "loop":
                    waits.append(books.seconds["input"] / took)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print("  ".join(f"{name} {value * 1e3:.1f} ms" for name, value in medians.items()), "a step")
    overhead, waited = medians["host"] / medians["bare"], statistics.median(waits)
    print(f"host overhead {overhead:.2%} of a step; waiting for input {waited:.3%} of the loop")
    differences = sorted(a / b - 1 for a, b in zip(seconds["loop"], seconds["bare"], strict=True))
    print(f"loop / bare - 1, pair by pair: {', '.join(f'{value:.1%}' for value in differences)}")
    shares = {"host_overhead": overhead, "input_wait": waited}
    write(arguments.out, {"seconds": seconds, "medians": medians, **shares, "input_waits": waits})


if __name__ == "__main__":
    main()
