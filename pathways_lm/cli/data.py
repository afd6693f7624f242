"""`pathways-lm data`: a corpus written once to a folder, any of its batches printed, its files checked."""

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from pathways_lm.checkpoint.run_folder import RunFolder
from pathways_lm.cli.devices import tell_what_happens
from pathways_lm.cli.show import show_batch
from pathways_lm.configure import load, override
from pathways_lm.data.build import Plan, write_cache
from pathways_lm.data.cache import plan_cache, prepare, writable
from pathways_lm.data.loader import Loader
from pathways_lm.data.manifest import JOURNAL, MANIFEST, Manifest, all_shards, check, finished, total
from pathways_lm.data.objectives import make_objective
from pathways_lm.data.shards import Advance, Report, text_bytes
from pathways_lm.errors import ConfigError, DataError


def main(arguments: argparse.Namespace) -> int:
    """Runs `cache`, `show` or `check`. Returns 0."""
    tell_what_happens()
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
    plan = plan_cache(experiment.data, experiment.model.vocab_size)
    began = time.perf_counter()
    with writable(f"--out='{arguments.out}'"), _progress(plan, console) as (report, written):
        manifest = write_cache(folder, plan, workers, report)
    seconds = time.perf_counter() - began
    _print_contents(console, manifest)
    tokens = sum(advance.tokens for advance in written)
    console.print(
        f"{tokens:,} tokens in {seconds:.1f} s, {tokens / seconds:,.0f} tokens/s with {workers} workers; "
        f"train on it with --set data.cache={arguments.out}",
        highlight=False,
        soft_wrap=True,
    )


@contextmanager
def _progress(plan: Plan, console: Console) -> Iterator[tuple[Report, list[Advance]]]:
    """A bar over the documents' bytes; what is reported is also kept."""
    documents = [document for job in plan.jobs for document in job.documents]
    columns = ("writing", "{task.fields[documents]:,} of {task.fields[all]:,} documents", "{task.fields[rate]}")
    texts = [TextColumn(column) for column in columns]
    bar = Progress(texts[0], BarColumn(), *texts[1:], TimeRemainingColumn(), console=console)
    written: list[Advance] = []
    began = time.perf_counter()
    with bar:
        size = sum(map(text_bytes, documents))
        task = bar.add_task("", total=size, documents=0, all=len(documents), rate="")

        def report(advance: Advance) -> None:
            written.append(advance)
            tokens = sum(each.tokens for each in written)
            done = sum(each.documents for each in written)
            rate = f"{tokens / (time.perf_counter() - began):,.0f} tokens/s"
            bar.update(task, advance=advance.bytes, documents=done, rate=rate)

        yield report, written


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
    if Path(arguments.target).is_dir():
        experiment = override(RunFolder(arguments.target).experiment(), arguments.overrides)
    else:
        experiment = load(arguments.target, arguments.overrides, arguments.gin_bindings)
    for name, value, least in (("--step", arguments.step, 0), ("--rows", arguments.rows, 1)):
        if value < least:
            raise ConfigError(f"{name} must be at least {least}, not {value}")
    corpus = prepare(experiment.data, experiment.model.vocab_size)
    loader = Loader(corpus, experiment.data, make_objective(experiment.data, corpus.vocabulary))
    show_batch(Console(), experiment.data, corpus, loader, arguments.step, arguments.rows)


def _check(arguments: argparse.Namespace) -> None:
    folder, console = Path(arguments.folder).expanduser(), Console()
    shards = list(all_shards(finished(folder)))
    columns = (TextColumn("reading"), BarColumn(), TextColumn("{task.completed} of {task.total} shards"))
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("", total=len(shards))
        manifest = check(folder, lambda shard: bar.update(task, advance=1))
    _print_contents(console, manifest)
    console.print(f"'{folder}' is whole", highlight=False, soft_wrap=True)
