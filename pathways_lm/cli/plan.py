"""`pathways-lm plan`: what a config's step costs on a machine that is not here."""

import argparse
import json
import sys
from pathlib import Path

import jax

from pathways_lm.configure import load
from pathways_lm.errors import CheckpointError, UserError
from pathways_lm.plan.compilers import PACKAGES, available, platform
from pathways_lm.plan.machine import parse_machine


def main(arguments: argparse.Namespace) -> int:
    """Prints the plan and writes plan.json and plan.html. Returns 0, or 1 where the step does not fit."""
    experiment = load(arguments.config, arguments.overrides, arguments.gin_bindings)
    machine = parse_machine(arguments.machine)
    # The plan needs no device of this machine.
    jax.config.update("jax_platforms", "cpu")
    if not available(machine):
        package = PACKAGES[platform(machine)]
        raise UserError(f"plans for {machine.name} need the compiler of {package}: run 'make compilers'")
    from pathways_lm.plan.plan import DoesNotFitError, make_plan

    try:
        from pathways_lm.plan.told import as_page, in_words
        from pathways_lm.report.html import write_whole
    except ModuleNotFoundError as error:
        raise UserError(f"plan needs {error.name}: pip install 'pathways-lm[report]'") from None
    try:
        plan = make_plan(experiment, machine)
    except DoesNotFitError as error:
        print(f"pathways-lm: {error}", file=sys.stderr)
        return 1
    print(in_words(plan))
    where = arguments.machine.replace(":", "-")
    folder = Path(arguments.out or Path("runs") / "plans" / f"{experiment.name}@{where}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "plan.json").write_text(json.dumps(plan.as_json(), indent=1) + "\n")
    except OSError as error:
        raise CheckpointError(f"'{folder}' cannot be written: {error.strerror}") from None
    write_whole(folder / "plan.html", as_page(plan))
    print(folder / "plan.html")
    return 0 if plan.memory.fits else 1
