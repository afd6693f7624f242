"""`pathways-lm plan`: what a config's step costs on a machine that is not here, and which layout suits it."""

import argparse
import json
import sys
from pathlib import Path

import jax

from pathways_lm.config import Experiment
from pathways_lm.configure import load
from pathways_lm.errors import CheckpointError, ConfigError, UserError
from pathways_lm.plan.compilers import PACKAGES, available, platform
from pathways_lm.plan.machine import Machine, parse_machine


def main(arguments: argparse.Namespace) -> int:
    """Prints the plan and writes plan.json and plan.html; decode.json; or search.json, search.html and override.txt.

    Returns 0, or 1 where the step, or every layout, does not fit.
    """
    experiment = load(arguments.config, arguments.overrides, arguments.gin_bindings)
    machine = parse_machine(arguments.machine)
    if arguments.price is not None and not 0 <= arguments.price < float("inf"):
        raise ConfigError(f"--price must be a number of at least 0, not {arguments.price}")
    if arguments.compile < 0:
        raise ConfigError(f"--compile must be at least 0, not {arguments.compile}")
    # The plan needs no device of this machine.
    jax.config.update("jax_platforms", "cpu")
    try:
        import pathways_lm.plan.told  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(f"plan needs {error.name}: pip install 'pathways-lm[report]'") from None
    compiling = available(machine) and not arguments.analytic
    if not compiling and not arguments.analytic:
        package = PACKAGES[platform(machine)]
        print(
            f"pathways-lm: the compiler of {package} is not installed ('make compilers'); by formulas", file=sys.stderr
        )
    folder = Path(arguments.out or Path("runs") / "plans" / f"{experiment.name}@{arguments.machine.replace(':', '-')}")
    if arguments.decode is not None:
        return _decode(arguments, experiment, machine, folder, compiling)
    if arguments.search:
        return _search(arguments, experiment, machine, folder, compiling)
    return _plan(arguments, experiment, machine, folder, compiling)


def _plan(
    arguments: argparse.Namespace, experiment: Experiment, machine: Machine, folder: Path, compiling: bool
) -> int:
    from pathways_lm.plan.analytic.plan import analytic_plan
    from pathways_lm.plan.plan import DoesNotFitError, make_plan, too_large
    from pathways_lm.plan.told import as_page, in_words

    try:
        plan = (make_plan if compiling else analytic_plan)(experiment, machine, arguments.price)
    except DoesNotFitError as error:
        return _does_not_fit(error, experiment, machine)
    print(in_words(plan))
    _write(folder, "plan.json", json.dumps(plan.as_json(), indent=1) + "\n")
    _write(folder, "plan.html", as_page(plan))
    print(folder / "plan.html")
    return 0 if plan.memory.fits else _does_not_fit(too_large(plan), experiment, machine)


def _decode(
    arguments: argparse.Namespace, experiment: Experiment, machine: Machine, folder: Path, compiling: bool
) -> int:
    from pathways_lm.plan.decode import in_words, make_decode_plan, parse_decode
    from pathways_lm.plan.plan import DoesNotFitError

    rows, slots = parse_decode(arguments.decode)
    if not compiling or arguments.search:
        raise ConfigError("--decode needs the machine's compiler, and goes neither with --analytic nor with --search")
    try:
        plan = make_decode_plan(experiment, machine, rows, slots)
    except DoesNotFitError as error:
        print(f"pathways-lm: {error}", file=sys.stderr)
        return 1
    print(in_words(plan))
    _write(folder, "decode.json", json.dumps(plan.as_json(), indent=1) + "\n")
    return 0 if plan.fits else 1


def _does_not_fit(error: Exception, experiment: Experiment, machine: Machine) -> int:
    """By how much, and what would help most."""
    from pathways_lm.plan.analytic.plan import analytic_plan
    from pathways_lm.plan.remedies import remedies, told

    now = analytic_plan(experiment, machine).memory
    print(f"pathways-lm: {error}", file=sys.stderr)
    print(f"pathways-lm: {told(remedies(experiment, machine, now), now.peak)}", file=sys.stderr)
    return 1


def _search(
    arguments: argparse.Namespace, experiment: Experiment, machine: Machine, folder: Path, compiling: bool
) -> int:
    from pathways_lm.plan.search import search
    from pathways_lm.plan.search_told import as_page, in_words

    found = search(experiment, machine, arguments.compile if compiling else 0, progress=_progress)
    print(in_words(found))
    if found.best is None:
        return 1
    _write(folder, "search.json", json.dumps(found.as_json(), indent=1) + "\n")
    _write(folder, "override.txt", "".join(f"--set={change}\n" for change in found.best.changes))
    _write(folder, "search.html", as_page(found))
    print(folder / "search.html")
    changes = " ".join(f"--set {change}" for change in found.best.changes)
    print(f"pathways-lm train {arguments.config} {changes}".rstrip())
    return 0


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _write(folder: Path, name: str, text: str) -> None:
    from pathways_lm.report.html import write_whole

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"'{folder}' cannot be written: {error.strerror}") from None
    write_whole(folder / name, text)
