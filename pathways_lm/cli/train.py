"""`pathways-lm train`: from a config to a trained run folder."""

import argparse
import time
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.console import Console

from pathways_lm.checkpoint.retention import Keep
from pathways_lm.checkpoint.run_folder import RunFolder, reading
from pathways_lm.checkpoint.store import Store
from pathways_lm.cli.begin import Beginning, begin
from pathways_lm.cli.cpu import fuse_chains
from pathways_lm.cli.describe import describe_run, mesh_text
from pathways_lm.cli.devices import compiled_folder, prepare_devices
from pathways_lm.cli.hooks import make_hooks
from pathways_lm.cli.report import write_page
from pathways_lm.cli.restore import Restorer
from pathways_lm.config import Experiment
from pathways_lm.configure import load
from pathways_lm.data.balance import Balance
from pathways_lm.data.cache import TRAIN, Corpus, prepare
from pathways_lm.data.course import Course
from pathways_lm.data.loader import Loader
from pathways_lm.data.objectives import abstract_batch, check_lengths, make_objective
from pathways_lm.data.ramp import Ramp, check_ramp, make_ramp, microbatches
from pathways_lm.errors import UserError
from pathways_lm.kernels.mkl import library
from pathways_lm.mesh import join_processes, make_mesh, platform
from pathways_lm.models.attentions import attentions, told
from pathways_lm.models.batch import Batch
from pathways_lm.models.inventory import num_params
from pathways_lm.models.model import Model
from pathways_lm.sharding import Rules, check_fit, rules_of
from pathways_lm.train.books import Books, last_books
from pathways_lm.train.flops import device_watts, flops_per_token, peak_flops, read_tokens
from pathways_lm.train.log import Log, Silence
from pathways_lm.train.loop import Loop
from pathways_lm.train.meter import Workload
from pathways_lm.train.optimizer import make_optimizer
from pathways_lm.train.optimizers.treatment import treatments
from pathways_lm.train.peers import leaving_together, watch_peers
from pathways_lm.train.precision import POLICIES
from pathways_lm.train.profile import Profiler
from pathways_lm.train.pulse import PULSE
from pathways_lm.train.schedule import make_schedule
from pathways_lm.train.spikes import Rewinds, Spikes
from pathways_lm.train.state import abstract_state, initial_state
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
    beginning: Beginning | None
    """Of a run that has no checkpoint yet and takes parameters of another."""
    console: Console
    began: float


@leaving_together
def main(arguments: argparse.Namespace) -> int:
    """Trains until the end, or until asked to stop. Returns 0, or 128 + the signal that stopped it."""
    began = time.perf_counter()
    experiment = load(arguments.config, arguments.overrides, arguments.gin_bindings)
    fuse_chains()
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
        policy = POLICIES[experiment.train.precision]
        products = _products(rules, experiment.data.cache_dir)
        model = Model(experiment.model, rules, policy.stored)
        example, half = abstract_batch(experiment.data), policy.compute.itemsize == 2
        attention = told(attentions(model, example, experiment.train.microbatches, half))
        if first:
            folder.create()
            stack.enter_context(folder.lock())
        said = f"{experiment.name}: {num_params(model):,} parameters on {mesh_text(rules.mesh)}"
        console.print(said, highlight=False, soft_wrap=True)
        console.print(attention, highlight=False, soft_wrap=True)
        if products:
            console.print(products, highlight=False, soft_wrap=True)
        # Patterns that fit no parameter are told before a corpus is prepared.
        treatments(experiment.optimizer, model)
        begins = experiment.train.init_from and not folder.has_checkpoint(experiment)
        beginning = begin(experiment, model) if begins else None
        corpus = prepare(reading(experiment, folder), experiment.model.vocab_size)
        if beginning is not None:
            beginning.check_vocabulary(experiment.data, model, corpus.vocabulary)
        source = Path(arguments.config)
        session = Session(experiment, source, folder, changes, model, corpus, beginning, console, began)
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


def _products(rules: Rules, cache_dir: str) -> str:
    """Which library multiplies on a CPU, and why; empty where there is no choice."""
    if platform(rules.mesh) != "cpu" or rules.mesh.size > 1:
        return ""
    return f"products: {library.load(compiled_folder(cache_dir))}"


def _train(session: Session, stack: ExitStack) -> int | None:
    """Restores or starts, and runs. Returns the signal that stopped it early, if one did."""
    experiment, source, folder, changes, model, corpus, beginning, console, began = session
    train, data = experiment.train, experiment.data
    first = jax.process_index() == 0
    books = Books(began)
    ramp = make_ramp(data)
    check_ramp(experiment, ramp, model.rules)
    tokens_read = partial(ramp.tokens_read, data.sequence_length)
    schedule = make_schedule(experiment.optimizer, train.num_steps, experiment.tokens_per_step, tokens_read)
    optimizer = make_optimizer(experiment.optimizer, schedule, model)
    balance = make_balance(experiment, corpus, ramp)
    loader = Loader(corpus, data, make_objective(data, corpus.vocabulary), balance.mixture, ramp)
    hooks = make_hooks(experiment, model, corpus, loader)
    keep = Keep(train.checkpoints_kept, train.checkpoints_kept_every, train.checkpoints_best, train.checkpoints_best_by)
    store = stack.enter_context(closing(Store(folder.checkpoints_at(experiment), keep)))
    rewinds = Rewinds(folder.rewinds)
    restorer = Restorer(store, abstract_state(model, optimizer), corpus, rewinds)
    state, found = restorer.newest()
    if state is None:
        params = beginning.params(model, train.seed) if beginning is not None else None
        state = initial_state(model, optimizer, train.seed, train.loss_scale, params)
    step = int(state.step)
    course = stack.enter_context(Course(loader, balance, model.rules("batch", None), step))
    spikes = Spikes(train)
    if found is not None:
        course.go_back(step, found, max(rewinds.skips, tuple(map(tuple, found["skips"])), key=len))
        spikes.restore(found["spikes"])
        if last := last_books(folder.metrics):
            books.follow(*last, found["productive_seconds"])
    log: Log | Silence = Silence()
    if first:
        # Not before the checkpoint was found to belong to this experiment.
        describe_run(folder, experiment, source, model, corpus)
        log = Log(folder.metrics, folder.samples, folder.tensorboard, console, train.num_steps, step)
    stack.enter_context(log)
    for number, problem in restorer.damaged:
        console.print(f"{problem}; using step {step}", style="yellow", highlight=False, soft_wrap=True)
        log.event(number, "damaged", problem)
    if step >= train.num_steps:
        said = f"'{folder.path}' is trained to step {step}; raise train.num_steps or choose another run folder"
        console.print(said, highlight=False, soft_wrap=True)
        return None
    if step:
        console.print(f"resuming '{folder.path}' after step {step}", highlight=False, soft_wrap=True)
    if beginning is not None:
        changes.append(beginning.told(model))
        console.print(f"'{folder.path}' {changes[-1]}", highlight=False, soft_wrap=True)
    log.event(step, "resume" if step else "start", "; ".join(changes))
    PULSE.beat(step)
    traces = folder.path / f"hang-process-{jax.process_index()}.txt"
    stack.enter_context(Watchdog(train.watchdog_seconds, traces, log.event))

    @cache
    def step_for(batch_size: int) -> Any:
        since = time.perf_counter()
        update = make_step(
            model, optimizer, schedule, replace(train, microbatches=microbatches(experiment, batch_size))
        )
        with books.spent("compile"):
            compiled = compile_step(update, model, optimizer, loader.example(batch_size))
        rows = f" for batches of {batch_size}" if len(ramp.sizes) > 1 else ""
        console.print(f"compiled the step{rows} in {time.perf_counter() - since:.1f} s", highlight=False)
        return compiled

    if train.profile_steps:
        # Or a program of another version might be found, that is the same but for the names of its parts.
        jax.config.update("jax_compilation_cache_include_metadata_in_key", True)
    # The first is compiled before anything else takes time.
    step_for(ramp.batch_size(step))
    workload = workload_of(model, loader.example(data.batch_size), data.batch_size, balance.mixture.tasks)
    facts = restorer.facts
    loop = Loop(
        *(train, state, step_for, course, store, facts, log, workload, hooks, books, spikes, rewinds),
        restore=restorer.back_to,
        first=first,
        profiler=Profiler(folder.profile, train.profiled) if first else None,
    )
    return loop.run()[1]


def make_balance(experiment: Experiment, corpus: Corpus, ramp: Ramp) -> Balance:
    """The shares of a run's tasks. Raises ConfigError for weights that cannot be."""
    sequences = {task: splits[TRAIN].sequences for task, splits in corpus.counts.items()}
    return Balance(experiment.mixing, corpus.rates, sequences, ramp.rows_before(experiment.train.num_steps))


def workload_of(model: Model, example: Batch, rows: int, tasks: tuple[str, ...]) -> Workload:
    """What is known of a step's work before it runs, on the devices there are."""
    kind, size = jax.devices()[0].device_kind, model.rules.mesh.size
    return Workload(
        tokens_per_row=sum(tokens.size for tokens in read_tokens(example)) // rows,
        flops_per_token=flops_per_token(model, example),
        peak_flops=peak_flops(kind, size),
        watts=device_watts(kind, size),
        tasks=tasks if len(tasks) > 1 else (),
    )
