"""Plans by formulas beside plans of the same layouts by the machines' compilers.

    python -m benchmarks.plan_formulas [--compile]

Prints docs/plans.md's table from benchmarks/results/plan_formulas.json; with `--compile` (and `make compilers`) the
compilers are asked again, about half an hour.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pathways_lm import configure
from pathways_lm.plan.analytic.plan import analytic_plan
from pathways_lm.plan.machine import parse_machine

RESULTS = Path(__file__).parent / "results" / "plan_formulas.json"
BLOCK = "model.remat=block"


@dataclass(frozen=True)
class Row:
    """A layout of a config on a machine."""

    config: str
    machine: str
    changes: tuple[str, ...]

    @property
    def name(self) -> str:
        """The key in the results."""
        return " ".join((self.config, self.machine, *self.changes))


def row(config: str, machine: str, *changes: str) -> Row:
    """A row from words."""
    return Row(config, machine, changes)


FOUR = "train.microbatches=4"
SEQUENCES = "mesh.rules=sequence_parallel"
ROWS = (
    row("palm/8b", "v5p:4x4x4", "mesh.tensor=4", FOUR, BLOCK),
    row("palm/62b", "v5p-256", "mesh.tensor=4", BLOCK),
    row("palm/62b", "v5p-256", "mesh.rules=fsdp", BLOCK),
    row("palm/62b", "h100:32x8", "mesh.rules=fsdp", BLOCK),
    row("palm/62b", "h100:32x8", "mesh.tensor=8", SEQUENCES, BLOCK, FOUR),
    row("palm/62b", "h100:32x8", "mesh.tensor=8", SEQUENCES, "mesh.zero=1", BLOCK, FOUR),
    row("palm/8b", "h100:8x8", "mesh.tensor=1", "train.microbatches=8", "model.remat=none", "mesh.zero=2"),
    row("megatron/3d_1_7b", "a100:4x8", "mesh.tensor=1", FOUR, "mesh.zero=3"),
    row("megatron/3d_7_5b", "a100:16x8", "mesh.tensor=4", FOUR, "mesh.zero=1"),
    row("glam/8b_64e", "v5e-256", "mesh.expert=64", "mesh.tensor=4", BLOCK, "model.moe.dispatch=all_to_all", FOUR),
    row("glam/8b_64e", "h100:32x8", "mesh.expert=64", "mesh.tensor=1", BLOCK, "model.moe.dispatch=all_to_all", FOUR),
)


def compiled(row: Row) -> dict:
    """What the compiler says, in short."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pathways_lm", "plan", f"configs/{row.config}.py", "--machine", row.machine]
        command += [f"--set={change}" for change in row.changes]
        done = subprocess.run([*command, "--out", folder], capture_output=True, text=True)
        if not (Path(folder) / "plan.json").exists():
            raise SystemExit(done.stderr)
        return short(json.loads((Path(folder) / "plan.json").read_text()))


def short(plan: dict) -> dict:
    """The figures of a plan that are compared."""
    return {
        "step_seconds": plan["roofline"]["step_seconds"],
        "peak_bytes": plan["memory"]["peak"],
        "flops": plan["roofline"]["flops"],
        "sent_bytes": sum(each["sent_bytes"] for each in plan["roofline"]["traffic"]),
        "compiler": plan["compiler"],
    }


def line(row: Row, told: dict) -> str:
    """A line of the table."""
    plan = analytic_plan(configure.load(f"configs/{row.config}.py", row.changes), parse_machine(row.machine))
    formulas = short(plan.as_json())
    ratios = [formulas[name] / told[name] for name in ("step_seconds", "peak_bytes", "flops", "sent_bytes")]
    changes = " ".join(f"`{change}`" for change in row.changes)
    gib = f"{formulas['peak_bytes'] / 2**30:.1f} / {told['peak_bytes'] / 2**30:.1f}"
    step = f"{formulas['step_seconds']:.3g} / {told['step_seconds']:.3g} s"
    return f"| `{row.config}` on `{row.machine}` | {changes} | {step} | {gib} | " + " | ".join(
        f"{ratio:.2f}" for ratio in ratios
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile", action="store_true", help="ask the compilers again")
    options = parser.parse_args()
    told = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    print("| config and machine | set | step | GiB | step | memory | FLOPs | bytes sent |")
    print("|---|---|---|---|---|---|---|---|")
    for each in ROWS:
        if options.compile or each.name not in told:
            told[each.name] = compiled(each)
            RESULTS.write_text(json.dumps(told, indent=1) + "\n")
        print(line(each, told[each.name]) + " |", flush=True)


if __name__ == "__main__":
    main()
