"""`pathways-lm train`: from a config to a trained run folder."""

import argparse
import platform
import shutil
import time
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import flax
import jax
import optax
from rich.console import Console

from pathways_lm import __version__
from pathways_lm.checkpoint.run_folder import RunFolder
from pathways_lm.checkpoint.store import Store
from pathways_lm.cli.devices import prepare_devices
from pathways_lm.cli.hooks import make_hooks
from pathways_lm.config import Experiment, to_dict
from pathways_lm.configure import load
from pathways_lm.data.cache import Corpus, prepare
from pathways_lm.data.loader import Loader
from pathways_lm.errors import CheckpointError
from pathways_lm.mesh import join_processes, make_mesh
from pathways_lm.models.decoder import Model
from pathways_lm.models.inventory import as_json, as_text, num_params
from pathways_lm.sharding import check_fit, make_rules
from pathways_lm.train.flops import flops_per_token, peak_flops
from pathways_lm.train.log import Log, Silence
from pathways_lm.train.loop import Workload, run
from pathways_lm.train.optimizer import make_optimizer
from pathways_lm.train.schedule import make_schedule
from pathways_lm.train.state import TrainState, abstract_state, from_items, initial_state, to_items
from pathways_lm.train.step import compile_step, make_step


def main(arguments: argparse.Namespace) -> int:
    """Trains until the end, or until asked to stop. Returns 0, or 128 + the signal that stopped it."""
    experiment = load(arguments.config, arguments.overrides, arguments.gin_bindings)
    prepare_devices(arguments, experiment.data.cache_dir)
    join_processes(arguments.coordinator, arguments.num_processes, arguments.process_id)
    folder = RunFolder(arguments.run or Path("runs") / experiment.name)
    changes = folder.changes(experiment)
    first = jax.process_index() == 0
    console = Console(quiet=not first)
    with ExitStack() as stack:
        rules = make_rules(experiment.mesh.rules, make_mesh(experiment.mesh))
        check_fit(experiment, rules)
        if first:
            folder.create()
            stack.enter_context(folder.lock())
        model = Model(experiment.model, rules)
        console.print(f"{experiment.name}: {num_params(model):,} parameters on {_mesh_text(model)}", highlight=False)
        corpus = prepare(experiment.data, experiment.model.vocab_size)
        if first:
            _describe(folder, experiment, Path(arguments.config), model, corpus)
        signal = _train(experiment, folder, changes, model, corpus, console, stack)
    if first:
        # matplotlib takes a second to import; training must not wait for it.
        from pathways_lm.report.page import write_report

        console.print(f"report: {write_report(folder.path)}", highlight=False)
    if signal is None:
        return 0
    console.print("saved and stopped; the same command goes on from here")
    return 128 + signal


def _train(
    experiment: Experiment, folder: RunFolder, changes: list[str], model: Model, corpus: Corpus, console: Console, stack: ExitStack
) -> int | None:
    """Restores or starts, compiles, runs. Returns the signal that stopped it early, if one did."""
    train, data = experiment.train, experiment.data
    schedule = make_schedule(experiment.optimizer, train.num_steps)
    optimizer = make_optimizer(experiment.optimizer, schedule, model)
    store = stack.enter_context(closing(Store(folder.path, train.checkpoints_kept)))
    damaged: list[tuple[int, str]] = []
    facts = {"data_fingerprint": corpus.fingerprint, "vocabulary_fingerprint": corpus.vocabulary.fingerprint}
    state = _restore(store, abstract_state(model, optimizer), damaged, facts)
    if state is None:
        state = initial_state(model, optimizer, train.seed)
    step = int(state.step)
    log: Log | Silence = Silence()
    if jax.process_index() == 0:
        log = Log(folder.metrics, folder.samples, folder.tensorboard, console, train.num_steps, step)
    stack.enter_context(log)
    for number, problem in damaged:
        console.print(f"{problem}; using step {step}", style="yellow", highlight=False)
        log.event(number, "damaged", problem)
    if step >= train.num_steps:
        console.print(f"'{folder.path}' is trained to step {step}; raise train.num_steps or choose another run folder")
        return None
    if step:
        console.print(f"resuming '{folder.path}' after step {step}", highlight=False)
    log.event(step, "resume" if step else "start", "; ".join(changes))

    began = time.perf_counter()
    shape = (data.batch_size, data.sequence_length)
    compiled = compile_step(make_step(model, optimizer, schedule, train), model, optimizer, shape)
    console.print(f"compiled the step in {time.perf_counter() - began:.1f} s", highlight=False)
    loader = Loader(corpus, data)
    batches = stack.enter_context(closing(loader.batches(step, model.rules("batch", "length"))))
    workload = Workload(
        tokens_per_step=data.batch_size * data.sequence_length,
        flops_per_token=flops_per_token(experiment.model, num_params(model), data.sequence_length),
        peak_flops=_total_peak(model),
    )
    hooks = make_hooks(experiment, model, corpus, loader)
    _, signal = run(train, state, compiled, batches, store, facts, log, workload, hooks)
    return signal


def _restore(store: Store, abstract: TrainState, damaged: list[tuple[int, str]], facts: dict[str, Any]) -> TrainState | None:
    """The newest whole checkpoint's state, on this mesh. Raises CheckpointError where its data was other data."""
    restored = store.restore(to_items(abstract), lambda *problem: damaged.append(problem), writable=True)
    if restored is None:
        return None
    step, items, saved = restored
    for name, what in (("vocabulary_fingerprint", "another vocabulary"), ("data_fingerprint", "other data")):
        if saved[name] != facts[name]:
            raise CheckpointError(
                f"checkpoint {step} in '{store.folder}' was trained on {what} ({saved[name][:12]}, not {facts[name][:12]}); "
                "bring the corpus back as it was, or choose another run folder"
            )
    return from_items(items)


def _describe(folder: RunFolder, experiment: Experiment, source: Path, model: Model, corpus: Corpus) -> None:
    """Writes everything about the run that does not change while it trains."""
    mesh = model.rules.mesh
    folder.write_json(folder.config, to_dict(experiment))
    shutil.copyfile(source, folder.path / f"source{source.suffix}")
    folder.vocabulary.write_bytes(corpus.vocabulary.model)
    folder.model_info.write_text(as_text(model) + "\n")
    folder.write_json(folder.parameters, as_json(model))
    folder.write_json(
        folder.facts,
        {
            "version": __version__,
            "python": platform.python_version(),
            "jax": jax.__version__,
            "flax": flax.__version__,
            "optax": optax.__version__,
            "device_kind": jax.devices()[0].device_kind,
            "num_devices": mesh.size,
            "num_processes": jax.process_count(),
            "mesh": dict(mesh.shape),
            "num_params": num_params(model),
            "vocab_fingerprint": corpus.vocabulary.fingerprint,
            "corpus": {
                "tasks": {task: {split: asdict(counts) for split, counts in splits.items()} for task, splits in corpus.counts.items()},
                "validation_bytes": corpus.validation_bytes,
                "yardsticks": dict(corpus.yardsticks),
            },
        },
    )


def _mesh_text(model: Model) -> str:
    mesh = model.rules.mesh
    shape = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    return f"{mesh.size} {jax.devices()[0].device_kind} device{'s' if mesh.size > 1 else ''} ({shape})"


def _total_peak(model: Model) -> float | None:
    one = peak_flops(jax.devices()[0].device_kind)
    return None if one is None else one * model.rules.mesh.size
