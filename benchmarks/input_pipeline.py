"""Tokens a second that are written to a cache and read from it: python -m benchmarks.input_pipeline

The text that comes with Python is written with one worker and with two, in turn, and read back as training reads it:
rows of the stream (`rows`), and batches on a device as the objective makes them (`batch`). Then a far step is read by a
new loader, every objective makes examples of random rows, and the tiny config trains for some steps: what it waits for
batches against what its steps take. Whatever else the machine does shows in the spread, which is kept; medians are
printed.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from pathways_lm.config import DataConfig, Experiment
from pathways_lm.configure import load
from pathways_lm.data.balance import Balance
from pathways_lm.data.build import write_cache
from pathways_lm.data.cache import plan_cache, prepare
from pathways_lm.data.course import Course
from pathways_lm.data.loader import Loader
from pathways_lm.data.objectives import make_objective, raw_length
from pathways_lm.data.shards import Advance
from pathways_lm.mesh import make_mesh
from pathways_lm.models.model import Model
from pathways_lm.sharding import rules_of
from pathways_lm.train.optimizer import make_optimizer
from pathways_lm.train.schedule import make_schedule
from pathways_lm.train.state import initial_state
from pathways_lm.train.step import compile_step, make_step

CONFIG = "configs/palm/tiny.py"
LENGTHS = (256, 2048)
OBJECTIVES = (
    *((name, "encoder") for name in ("causal", "prefix", "masked", "fill_in_the_middle", "span_corruption", "ul2")),
    *(("span_corruption", "causal"), ("ul2", "causal")),
)
WARM_UP = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="of writing; reading is repeated three times as often")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/input_pipeline.json"))
    arguments = parser.parse_args()
    experiment = load(CONFIG, [])
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        caches = {}
        for length in LENGTHS:
            data = replace(experiment.data, sequence_length=length)
            caches[length] = replace(data, cache=str(Path(folder, str(length))))
            if length == LENGTHS[0]:
                written = writing(data, experiment.model.vocab_size, Path(caches[length].cache), arguments.repeats)
                rates |= written
            else:
                plan = plan_cache(data, experiment.model.vocab_size)
                write_cache(Path(caches[length].cache), plan, 2, lambda advance: None)
        for data in caches.values():
            rates |= reading(data, experiment.model.vocab_size, 3 * arguments.repeats)
        rates |= making(3 * arguments.repeats)
        seconds = seeking(caches[LENGTHS[0]], experiment.model.vocab_size, 3 * arguments.repeats)
        waits = waiting(replace(experiment, data=caches[LENGTHS[0]]), arguments.steps)
    tell(rates, seconds, waits)
    versions = {name: version(name) for name in ("jax", "grain", "array-record", "seqio", "sentencepiece")}
    others = round(os.getloadavg()[1], 1)
    facts = {
        "load_average": others,
        "date": datetime.now(UTC).date().isoformat(),
        "cores": os.cpu_count(),
        "versions": versions,
    }
    results = {**facts, "tokens_per_second": rates, "seek_seconds": seconds, "training_seconds": waits}
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")


def writing(data: DataConfig, vocab_size: int, out: Path, repeats: int) -> dict[str, list[float]]:
    """Tokens a second by workers, from the command's start and from the first document that is done."""
    plan = plan_cache(data, vocab_size)
    rates: dict[str, list[float]] = {}
    for repeat in range(repeats):
        for workers in (1, 2):
            reports: list[tuple[float, Advance]] = []
            began = time.perf_counter()
            folder = out if (repeat, workers) == (0, 1) else out.with_name(f"{repeat}-{workers}")
            write_cache(folder, plan, workers, lambda each, kept=reports: kept.append((time.perf_counter(), each)))
            ended = time.perf_counter()
            tokens = sum(advance.tokens for _, advance in reports)
            # The first report is of what is done then: what comes behind it was written since.
            since, first = reports[0]
            name = f"write {data.sequence_length}, {workers} workers"
            rates.setdefault(name, []).append(tokens / (ended - began))
            rates.setdefault(f"{name}, once started", []).append((tokens - first.tokens) / (ended - since))
    return rates


def make_loader(data: DataConfig, vocab_size: int) -> Loader:
    corpus = prepare(data, vocab_size)
    return Loader(corpus, data, make_objective(data, corpus.vocabulary))


def reading(data: DataConfig, vocab_size: int, repeats: int) -> dict[str, list[float]]:
    """Tokens a second, a thousand rows at a time that were not read before.

    On a machine that others use, what counts is a second in which a processor works on it.
    """
    loader, device = make_loader(data, vocab_size), jax.sharding.SingleDeviceSharding(jax.devices()[0])
    rows = 1024

    def batches(start: int) -> None:
        first = start // data.batch_size
        jax.block_until_ready([loader.batch(first + step, device) for step in range(rows // data.batch_size)])

    ways: dict[str, Callable[[int], Any]] = {
        "rows": lambda start: [loader.rows(at, at + data.batch_size) for at in range(start, start + rows, 8)],
        "batch": batches,
    }
    rates: dict[str, list[float]] = {}
    for repeat in range(repeats + 1):
        for name, read in ways.items():
            began, worked = time.perf_counter(), time.process_time()
            read(repeat * rows)
            seconds = {"": time.perf_counter() - began, ", of the processor's time": time.process_time() - worked}
            for of, taken in seconds.items() if repeat else ():
                rate = rows * data.sequence_length / taken
                rates.setdefault(f"read {data.sequence_length}, {name}{of}", []).append(rate)
    return rates


class _Pieces:
    """A vocabulary without a model."""

    size, eod_id = 4000, 2
    word_edges = (np.arange(4000) % 3 > 0, np.arange(4000) % 5 > 0)


def making(repeats: int) -> dict[str, list[float]]:
    """Tokens a second, by the processor's time, that each objective makes batches of 8 x 256 of."""
    rates: dict[str, list[float]] = {}
    for objective, inputs in OBJECTIVES:
        data = DataConfig(objective=objective, inputs=inputs, sequence_length=256, batch_size=8, extra_ids=100)
        make, random = make_objective(data, _Pieces()), np.random.default_rng(0)
        rows = random.integers(3, 4000, (2048, raw_length(data)), dtype=np.int32)
        rows[random.random(rows.shape) < 0.005] = _Pieces.eod_id
        for repeat in range(repeats + 1):
            worked = time.process_time()
            for at in range(0, len(rows), data.batch_size):
                make(rows[at : at + data.batch_size], range(at, at + data.batch_size))
            rate = rows.size / (time.process_time() - worked)
            if repeat:
                rates.setdefault(f"make {objective}, {inputs}, of the processor's time", []).append(rate)
    return rates


def seeking(data: DataConfig, vocab_size: int, repeats: int) -> dict[str, list[float]]:
    """Seconds in which a new loader gives a step's batch."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    seconds: dict[str, list[float]] = {}
    for _ in range(repeats):
        for step in (1, 10**6):
            loader = make_loader(data, vocab_size)
            began = time.perf_counter()
            jax.block_until_ready(loader.batch(step - 1, device))
            seconds.setdefault(f"step {step}", []).append(time.perf_counter() - began)
    return seconds


def waiting(experiment: Experiment, steps: int) -> dict[str, list[float]]:
    """Of each step of training, the seconds in which it waits for its batch and those of the whole step."""
    data = experiment.data
    model = Model(experiment.model, rules_of(experiment.mesh, make_mesh(experiment.mesh)))
    schedule = make_schedule(experiment.optimizer, steps)
    optimizer = make_optimizer(experiment.optimizer, schedule, model)
    corpus = prepare(data, experiment.model.vocab_size)
    balance = Balance(experiment.mixing, corpus.rates, dict.fromkeys(corpus.rates, 1), 1)
    loader = Loader(corpus, data, make_objective(data, corpus.vocabulary), balance.mixture)
    step = make_step(model, optimizer, schedule, experiment.train)
    compiled = compile_step(step, model, optimizer, loader.example(data.batch_size))
    state = initial_state(model, optimizer, 0)
    seconds: dict[str, list[float]] = {"wait": [], "step": []}
    with Course(loader, balance, model.rules("batch", None)) as course:
        for number in range(WARM_UP + steps):
            began = time.perf_counter()
            batch = course.take()
            taken = time.perf_counter()
            state, metrics = compiled(state, batch)
            jax.block_until_ready(metrics)
            if number >= WARM_UP:
                seconds["wait"].append(taken - began)
                seconds["step"].append(time.perf_counter() - began)
    return seconds


def tell(rates: dict[str, list[float]], seconds: dict[str, list[float]], waits: dict[str, list[float]]) -> None:
    table = Table("what", "median", "lowest", "highest", box=None)
    for name, values in rates.items():
        figures = (statistics.median(values), min(values), max(values))
        table.add_row(name, *(f"{value:,.0f} tokens/s" for value in figures))
    for name, values in seconds.items():
        figures = (statistics.median(values), min(values), max(values))
        table.add_row(f"a new loader's batch of {name}", *(f"{value * 1e3:.1f} ms" for value in figures))
    Console(width=120).print(table)
    share = sum(waits["wait"]) / sum(waits["step"])
    print(f"{len(waits['step'])} steps of {sum(waits['step']) / len(waits['step']):.3f} s, {share:.3%} of it waiting")


if __name__ == "__main__":
    main()
