"""`pathways-lm data`: a corpus written once to a folder, any of its batches printed, its files checked."""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from pathways_lm.checkpoint.run_folder import RunFolder, reading
from pathways_lm.checkpoint.store import Store
from pathways_lm.cli.devices import set_up_logging
from pathways_lm.cli.show import Words, show_batch
from pathways_lm.cli.train import make_balance
from pathways_lm.configure import load, override
from pathways_lm.data.balance import Balance
from pathways_lm.data.build import Plan, write_cache
from pathways_lm.data.cache import plan_cache, prepare, writable
from pathways_lm.data.loader import Loader
from pathways_lm.data.manifest import JOURNAL, MANIFEST, Manifest, all_shards, check, finished, total
from pathways_lm.data.objectives import make_objective
from pathways_lm.data.ramp import make_ramp
from pathways_lm.data.shards import Advance, Report, text_bytes
from pathways_lm.errors import ConfigError, DataError
from pathways_lm.train.spikes import Rewinds


def main(arguments: argparse.Namespace) -> int:
    """Runs `cache`, `show` or `check`. Returns 0."""
    set_up_logging()
    {"cache": _cache, "show": _show, "check": _check}[arguments.action](arguments)
    return 0


def _cache(arguments: argparse.Namespace) -> None:
    experiment = load(arguments.config, arguments.overrides, arguments.gin_bindings)
    workers = os.cpu_count() or 1 if arguments.workers is None else arguments.workers
    if workers < 1:
        raise ConfigError(f"--workers must be at least 1, not {workers}")
    folder, console = Path(arguments.out).expanduser(), Console()
    with writable(f"--out='{arguments.out}'"):
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()) and not any((folder / name).exists() for name in (MANIFEST, JOURNAL, "lock")):
            raise DataError(f"--out='{arguments.out}' holds files that are no cache's; choose an empty folder")
    plan = plan_cache(reading(experiment), experiment.model.vocab_size)
    began = time.perf_counter()
    with writable(f"--out='{arguments.out}'"), _progress(plan, console) as (report, written):
        manifest = write_cache(folder, plan, workers, report)
    seconds = time.perf_counter() - began
    _print_contents(console, manifest)
    tokens = sum(advance.tokens for advance in written)
    said = f"{tokens:,} tokens in {seconds:.1f} s, {tokens / seconds:,.0f} tokens/s" if tokens else "all was there"
    console.print(f"{said}; train on it with --set data.cache={arguments.out}", highlight=False, soft_wrap=True)


@contextmanager
def _progress(plan: Plan, console: Console) -> Iterator[tuple[Report, list[Advance]]]:
    """A bar over the documents' bytes; what is reported is also kept."""
    documents = [document for job in plan.jobs for document in job.documents]
    columns = ("writing", "{task.fields[documents]:,} of {task.fields[all]:,} documents", "{task.fields[rate]}")
    texts = [TextColumn(column) for column in columns]
    bar = Progress(texts[0], BarColumn(), *texts[1:], TimeRemainingColumn(), console=console)
    written: list[Advance] = []
    began = time.perf_counter()
    size = sum(map(text_bytes, documents))
    task = bar.add_task("", total=size, documents=0, all=len(documents), rate="")

    def report(advance: Advance) -> None:
        bar.start()
        written.append(advance)
        tokens = sum(each.tokens for each in written)
        done = sum(each.documents for each in written)
        rate = f"{tokens / (time.perf_counter() - began):,.0f} tokens/s"
        bar.update(task, advance=advance.bytes, documents=done, rate=rate)

    try:
        yield report, written
    finally:
        bar.stop()


def _print_contents(console: Console, manifest: Manifest) -> None:
    table = Table("task", "split", *("documents", "tokens", "sequences", "shards", "MB"), box=None)
    for column in table.columns[2:]:
        column.justify = "right"
    for task, splits in manifest.shards.items():
        for split, shards in splits.items():
            counts = total(shards)
            megabytes = sum(shard.file_bytes for shard in shards) / 1e6
            numbers = (counts.documents, counts.tokens, counts.sequences, len(shards))
            table.add_row(task, split, *(f"{number:,}" for number in numbers), f"{megabytes:.1f}")
    console.print(table)


def _show(arguments: argparse.Namespace) -> None:
    for name, value in (("--step", arguments.step), ("--rows", arguments.rows)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, not {value}")
    folder = RunFolder(arguments.target) if Path(arguments.target).is_dir() else None
    if folder is not None:
        experiment = override(folder.experiment(), arguments.overrides)
    else:
        experiment = load(arguments.target, arguments.overrides, arguments.gin_bindings)
    corpus = prepare(reading(experiment, folder), experiment.model.vocab_size)
    ramp = make_ramp(experiment.data)
    balance = make_balance(experiment, corpus, ramp)
    loader = Loader(corpus, experiment.data, make_objective(experiment.data, corpus.vocabulary), balance.mixture, ramp)
    if folder is not None:
        _follow(folder, loader, balance)
    show_batch(Console(), loader, Words(corpus.vocabulary, experiment.data), arguments.step, arguments.rows)


def _follow(folder: RunFolder, loader: Loader, balance: Balance) -> None:
    """Lets the loader read what the run read: shares that changed, rows that were skipped."""
    if not (folder.path / "checkpoints").is_dir():
        return
    with closing(Store(folder.path, readonly=True)) as store:
        restored = store.restore({}, lambda step, problem: print(problem, file=sys.stderr))
    if restored is None:
        return
    step, _, facts = restored
    skips = max(Rewinds(folder.rewinds).skips, tuple(map(tuple, facts["skips"])), key=len)
    loader.ramp = replace(loader.ramp, skips=skips)
    balance.restore(facts["balance"], loader.ramp.first_row(step))


def _check(arguments: argparse.Namespace) -> None:
    folder, console = Path(arguments.folder).expanduser(), Console()
    shards = list(all_shards(finished(folder, f"'{folder}'")))
    columns = (TextColumn("reading"), BarColumn(), TextColumn("{task.completed} of {task.total} shards"))
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("", total=len(shards))
        manifest = check(folder, lambda shard: bar.update(task, advance=1))
    _print_contents(console, manifest)
    console.print(f"'{folder}' is whole", highlight=False, soft_wrap=True)
