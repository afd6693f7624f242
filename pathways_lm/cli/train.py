"""`pathways-lm train`: from a config to a trained run folder."""

import argparse
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.console import Console

from pathways_lm.checkpoint.retention import Keep
from pathways_lm.checkpoint.run_folder import RunFolder
from pathways_lm.checkpoint.store import Store
from pathways_lm.cli.describe import describe_run, mesh_text
from pathways_lm.cli.devices import prepare_devices
from pathways_lm.cli.hooks import make_hooks
from pathways_lm.cli.report import write_page
from pathways_lm.config import Experiment
from pathways_lm.configure import load
from pathways_lm.data.cache import Corpus, prepare
from pathways_lm.data.loader import Loader
from pathways_lm.data.objectives import check_lengths, make_objective
from pathways_lm.errors import CheckpointError, UserError
from pathways_lm.mesh import join_processes, make_mesh
from pathways_lm.models.inventory import num_params
from pathways_lm.models.model import Model
from pathways_lm.sharding import check_fit, rules_of
from pathways_lm.train.flops import flops_per_token, peak_flops, read_tokens
from pathways_lm.train.log import Log, Silence
from pathways_lm.train.loop import Workload, run
from pathways_lm.train.optimizer import make_optimizer
from pathways_lm.train.peers import leaving_together, watch_peers
from pathways_lm.train.pulse import PULSE
from pathways_lm.train.schedule import make_schedule
from pathways_lm.train.state import TrainState, abstract_state, from_items, initial_state, to_items
from pathways_lm.train.step import compile_step, make_step
from pathways_lm.train.watchdog import Watchdog


class Session(NamedTuple):
    """What a run is made of, before anything is restored or compiled."""

    experiment: Experiment
    source: Path
    folder: RunFolder
    changes: list[str]
    model: Model
    corpus: Corpus
    console: Console


@leaving_together
def main(arguments: argparse.Namespace) -> int:
    """Trains until the end, or until asked to stop. Returns 0, or 128 + the signal that stopped it."""
    experiment = load(arguments.config, arguments.overrides, arguments.gin_bindings)
    prepare_devices(arguments, experiment.data.cache_dir)
    join_processes(arguments.coordinator, arguments.num_processes, arguments.process_id)
    watch_peers()
    folder = RunFolder(arguments.run or Path("runs") / experiment.name)
    changes = folder.changes(experiment)
    first = jax.process_index() == 0
    console = Console(quiet=not first)
    with folder.writable(), ExitStack() as stack:
        rules = rules_of(experiment.mesh, make_mesh(experiment.mesh))
        check_fit(experiment, rules)
        check_lengths(experiment.data, rules)
        if first:
            folder.create()
            stack.enter_context(folder.lock())
        model = Model(experiment.model, rules)
        said = f"{experiment.name}: {num_params(model):,} parameters on {mesh_text(rules.mesh)}"
        console.print(said, highlight=False, soft_wrap=True)
        corpus = prepare(experiment.data, experiment.model.vocab_size)
        session = Session(experiment, Path(arguments.config), folder, changes, model, corpus, console)
        signal = _train(session, stack)
    if first:
        try:
            with folder.writable():
                console.print(f"report: {write_page(folder.path)}", highlight=False, soft_wrap=True)
        except UserError as error:
            # The run itself is whole without its page.
            console.print(f"no report: {error}", highlight=False, soft_wrap=True)
    if signal is None:
        return 0
    console.print("saved and stopped; the same command goes on from here")
    return 128 + signal


def _train(session: Session, stack: ExitStack) -> int | None:
    """Restores or starts, compiles, runs. Returns the signal that stopped it early, if one did."""
    experiment, source, folder, changes, model, corpus, console = session
    train, data = experiment.train, experiment.data
    schedule = make_schedule(experiment.optimizer, train.num_steps)
    optimizer = make_optimizer(experiment.optimizer, schedule, model)
    objective = make_objective(data, corpus.vocabulary)
    loader = Loader(corpus, data, objective)
    hooks = make_hooks(experiment, model, corpus, loader)
    keep = Keep(train.checkpoints_kept, train.checkpoints_kept_every, train.checkpoints_best, train.checkpoints_best_by)
    store = stack.enter_context(closing(Store(folder.checkpoints_at(experiment), keep)))
    facts = {"data_fingerprint": corpus.fingerprint, "vocabulary_fingerprint": corpus.vocabulary.fingerprint}
    damaged: list[tuple[int, str]] = []
    state = _restore(store, abstract_state(model, optimizer), damaged, facts)
    if state is None:
        state = initial_state(model, optimizer, train.seed)
    step = int(state.step)
    log: Log | Silence = Silence()
    if jax.process_index() == 0:
        # Not before the checkpoint was found to belong to this experiment.
        describe_run(folder, experiment, source, model, corpus)
        log = Log(folder.metrics, folder.samples, folder.tensorboard, console, train.num_steps, step)
    stack.enter_context(log)
    for number, problem in damaged:
        console.print(f"{problem}; using step {step}", style="yellow", highlight=False, soft_wrap=True)
        log.event(number, "damaged", problem)
    if step >= train.num_steps:
        said = f"'{folder.path}' is trained to step {step}; raise train.num_steps or choose another run folder"
        console.print(said, highlight=False, soft_wrap=True)
        return None
    if step:
        console.print(f"resuming '{folder.path}' after step {step}", highlight=False, soft_wrap=True)

    PULSE.beat(step)
    traces = folder.path / f"hang-process-{jax.process_index()}.txt"
    stack.enter_context(Watchdog(train.watchdog_seconds, traces, log.event))
    began = time.perf_counter()
    with PULSE.doing("compile"):
        compiled = compile_step(make_step(model, optimizer, schedule, train), model, optimizer, loader.example)
    compiled_in = f"compiled the step in {time.perf_counter() - began:.1f} s"
    console.print(compiled_in, highlight=False)
    log.event(step, "resume" if step else "start", "; ".join([compiled_in, *changes]))
    batches = stack.enter_context(closing(loader.batches(step, model.rules("batch", None))))
    workload = Workload(
        tokens_per_step=sum(tokens.size for tokens in read_tokens(loader.example)),
        flops_per_token=flops_per_token(model, loader.example),
        peak_flops=peak_flops(jax.devices()[0].device_kind, model.rules.mesh.size),
    )
    _, signal = run(train, state, compiled, batches, store, facts, log, workload, hooks)
    return signal


def _restore(
    store: Store, abstract: TrainState, damaged: list[tuple[int, str]], facts: dict[str, Any]
) -> TrainState | None:
    """The newest whole checkpoint's state, on this mesh. Raises CheckpointError where its data was other data."""
    restored = store.restore(to_items(abstract), lambda *problem: damaged.append(problem), writable=True)
    if restored is None:
        return None
    step, items, saved = restored
    for name, what in (("vocabulary_fingerprint", "another vocabulary"), ("data_fingerprint", "other data")):
        if saved[name] != facts[name]:
            raise CheckpointError(
                f"checkpoint {step} in '{store.folder}' was trained on {what} "
                f"({saved[name][:12]}, not {facts[name][:12]}); "
                "bring the corpus back as it was, or choose another run folder"
            )
    return from_items(items)
