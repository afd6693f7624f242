"""Layouts that a search finds, beside those that a practitioner would write down, all by the machine's own compiler.

    python -m benchmarks.plan_search [--only h100]

Needs `make compilers`, and no TPU or GPU. Prints docs/plans.md's table and writes benchmarks/results/plan_search.json,
in which cases that `--only` leaves out stay as they were.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "plan_search.json"
BLOCK = "model.remat=block"
BY_INDEX = "model.moe.dispatch=all_to_all"


@dataclass(frozen=True)
class Case:
    """A config on a machine, and layouts by hand, by name."""

    config: str
    machine: str
    by_hand: dict[str, tuple[str, ...]]

    @property
    def name(self) -> str:
        """As `palm/62b on v5p-256`."""
        return f"{self.config} on {self.machine}"


CASES = (
    Case(
        "palm/62b",
        "h100:32x8",
        {
            "FSDP": ("mesh.rules=fsdp", BLOCK),
            "PaLM's 2D, 8-way": ("mesh.tensor=8", BLOCK),
            "Megatron's sequences, 8-way, ZeRO 1": (
                *("mesh.tensor=8", "mesh.rules=sequence_parallel", "mesh.zero=1"),
                *("train.microbatches=4", BLOCK),
            ),
            "Megatron's, 8-way, ZeRO 3": ("mesh.tensor=8", "mesh.rules=tensor_parallel", "train.microbatches=4", BLOCK),
        },
    ),
    Case(
        "palm/62b",
        "v5p-256",
        {
            "FSDP": ("mesh.rules=fsdp", BLOCK),
            "PaLM's 2D, 4-way": ("mesh.tensor=4", BLOCK),
            "PaLM's 2D, 8-way, 4 microbatches": ("mesh.tensor=8", "train.microbatches=4", BLOCK),
        },
    ),
    Case(
        "glam/8b_64e",
        "v5e-256",
        {
            "GLaM's 2D": ("mesh.expert=64", "mesh.tensor=4", BLOCK, BY_INDEX, "train.microbatches=4"),
            "experts x data": ("mesh.expert=64", "mesh.tensor=1", BLOCK, BY_INDEX, "train.microbatches=4"),
            "experts in 16 groups": ("mesh.expert=16", "mesh.tensor=4", BLOCK, BY_INDEX, "train.microbatches=4"),
        },
    ),
)


def command(case: Case, folder: str, *arguments: str) -> tuple[subprocess.CompletedProcess, float]:
    """`pathways-lm plan` for the case, and its seconds."""
    began = time.perf_counter()
    start = [sys.executable, "-m", "pathways_lm", "plan", f"configs/{case.config}.py", "--machine", case.machine]
    done = subprocess.run([*start, "--out", folder, *arguments], capture_output=True, text=True)
    return done, time.perf_counter() - began


def by_hand(case: Case, changes: tuple[str, ...]) -> dict:
    """What the compiler says of a layout."""
    with tempfile.TemporaryDirectory() as folder:
        done, seconds = command(case, folder, *(f"--set={change}" for change in changes))
        told = {"changes": list(changes), "seconds": seconds}
        if not (Path(folder) / "plan.json").exists() or done.returncode:
            lines = done.stderr.strip().splitlines()
            return told | {"refused": next((line for line in lines if "not fit" in line), lines[-1])}
        plan = json.loads((Path(folder) / "plan.json").read_text())
        return told | {
            "step_seconds": plan["roofline"]["step_seconds"],
            "peak_bytes": plan["memory"]["peak"],
            "mfu": plan["mfu"],
        }


def searched(case: Case) -> dict:
    """What the search finds, and how long it takes as a command."""
    with tempfile.TemporaryDirectory() as folder:
        done, seconds = command(case, folder, "--search")
        if done.returncode:
            raise SystemExit(done.stderr)
        found = json.loads((Path(folder) / "search.json").read_text())
    for each in found["compiled"]:
        plan = each.pop("plan")
        if plan:
            each["by_compiler"] = {
                "step_seconds": plan["roofline"]["step_seconds"],
                "peak_bytes": plan["memory"]["peak"],
                "mfu": plan["mfu"],
            }
    return found | {"command_seconds": seconds, "frontier": found["frontier"][:20]}


def lines(name: str, told: dict) -> list[str]:
    """The case's rows of the table."""
    rows = []
    for layout, plan in told["by_hand"].items():
        if "refused" in plan:
            rows.append(f"| `{name}` | {layout} | | {plan['refused'].partition('does not fit: ')[2]} | | |")
        else:
            rows.append(_row(name, layout, plan, plan["seconds"]))
    best = [each for each in told["search"]["compiled"] if each["changes"] == told["search"]["best"]]
    rows.append(
        _row(name, f"**search**: {best[0]['layout']}", best[0]["by_compiler"], told["search"]["command_seconds"])
    )
    return rows


def _row(name: str, layout: str, plan: dict, seconds: float) -> str:
    gib = plan["peak_bytes"] / 2**30
    return f"| `{name}` | {layout} | {plan['step_seconds']:.3g} s | {gib:.1f} | {plan['mfu']:.1%} | {seconds:.0f} s |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    options = parser.parse_args()
    told = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    print("| config and machine | layout | step | GiB a device | MFU | took |")
    print("|---|---|---|---|---|---|")
    for case in CASES:
        if options.only in case.name:
            told[case.name] = {"search": searched(case), "by_hand": {}}
            for name, changes in case.by_hand.items():
                told[case.name]["by_hand"][name] = by_hand(case, changes)
                RESULTS.write_text(json.dumps(told, indent=1) + "\n")
        if case.name in told:
            print("\n".join(lines(case.name, told[case.name])), flush=True)


if __name__ == "__main__":
    main()
