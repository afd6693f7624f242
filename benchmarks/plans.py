"""Plans of the papers' models on the papers' machines, compiled by those machines' compilers, and what was published.

    python -m benchmarks.plans [--only megatron]

Needs `make compilers`, and no TPU or GPU. Prints docs/plans.md's table and writes benchmarks/results/plans.json, in
which rows that `--only` leaves out stay as they were.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parent / "results" / "plans.json"


@dataclass(frozen=True)
class Row:
    """A config on a machine, and the shares of the peak that its paper tells, with and without recomputing."""

    config: str
    machine: str
    changes: tuple[str, ...]
    mfu: float | None = None
    hfu: float | None = None
    source: str = ""


def megatron(size: str, gpus: int, share: float, *changes: str) -> Row:
    """A row of Megatron-LM's table 1 (arXiv:2104.04473); its FLOPs count what is computed twice.

    Mesh and stages are the config's. Those with stages have a sequence of each replica as microbatch.
    """
    return Row(f"megatron/3d_{size}", f"a100:{gpus // 8}x8", changes, hfu=share, source="2104.04473, table 1")


RECOMPUTE = "model.remat=block"
BY_INDEX = "model.moe.dispatch=all_to_all"
STAGES_35 = ("mesh.stage=35", "model.vocab_size=51240", "model.remat=none", "mesh.rules=tensor_parallel")
ROWS = (
    Row("palm/8b", "v4-512", ("mesh.tensor=4", RECOMPUTE)),
    Row("palm/62b", "v4-1024", ("mesh.tensor=8", RECOMPUTE)),
    Row(
        "palm/540b",
        "v4-3072x2",
        ("mesh.pod=2", "mesh.data=256", "mesh.tensor=12", RECOMPUTE, "model.vocab_size=256008", "data.batch_size=2048"),
        mfu=0.462,
        hfu=0.578,
        source="2204.02311, section 4.1",
    ),
    Row("t5/11b", "v3:16x16", ("mesh.tensor=16", RECOMPUTE)),
    Row("switch/base", "v3:4x4", (RECOMPUTE,)),
    Row("switch/large", "v3:4x8", (RECOMPUTE, "mesh.expert=32")),
    Row("switch/xxl", "v4-1024", (RECOMPUTE, "mesh.expert=32", "mesh.tensor=16", BY_INDEX)),
    # The paper's way: experts and nothing else. Targets are 114 tokens, and groups must be as many as devices.
    Row("switch/c", "v4-1024", (RECOMPUTE, BY_INDEX, "mesh.expert=1024", "model.moe.group_tokens=228")),
    Row("glam/64b_64e", "v4-1024", ("mesh.tensor=16", RECOMPUTE, BY_INDEX, "train.microbatches=4")),
    megatron("1_7b", 32, 0.44, "train.microbatches=4"),
    megatron("3_6b", 64, 0.44, "train.microbatches=4"),
    megatron("7_5b", 128, 0.46, "train.microbatches=4"),
    megatron("18_4b", 256, 0.43, "train.microbatches=8"),
    megatron("39_1b", 512, 0.44),
    megatron("76_1b", 1024, 0.45),
    megatron("145_6b", 1536, 0.47),
    megatron("310_1b", 1920, 0.50),
    megatron("529_6b", 2520, 0.52, *STAGES_35, "train.microbatches=280", "mesh.zero=0"),
    megatron("1008b", 3072, 0.52),
    Row(
        "mt_nlg/530b",
        "a100:280x8",
        (*STAGES_35, "train.microbatches=240", "mesh.zero=1"),
        mfu=0.302,
        source="2204.02311, table 3",
    ),
)


def compiled(row: Row) -> dict:
    """The plan as JSON, or what the command said instead."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pathways_lm", "plan", f"configs/{row.config}.py", "--machine", row.machine]
        # The papers held their scores: kernels that do not came later.
        command += [f"--set={change}" for change in ("model.attention=plain", *row.changes)]
        done = subprocess.run([*command, "--out", folder], capture_output=True, text=True)
        if (Path(folder) / "plan.json").exists():
            return json.loads((Path(folder) / "plan.json").read_text())
        return {"refused": done.stderr.strip().splitlines()[-1]}


def line(row: Row, plan: dict) -> str:
    """A line of the table."""
    changes = " ".join(f"`{change}`" for change in row.changes)
    first = f"| `{row.config}` on `{row.machine}` | {changes} |"
    if "refused" in plan:
        return f"{first} {plan['refused']} | | | | | | |"
    memory, cost = plan["memory"], plan["roofline"]
    published = " / ".join(f"{share:.1%}" if share else "-" for share in (row.mfu, row.hfu)) + f" ({row.source})"
    off = [
        f"{told / said - 1:+.0%}" for told, said in ((plan["mfu"], row.mfu), (plan["hfu"], row.hfu)) if said is not None
    ]
    return (
        f"{first} {memory['peak'] / 2**30:.1f} of {memory['capacity'] / 2**30:.0f} | {cost['step_seconds']:.3g} s | "
        f"{plan['tokens_per_second']:,.0f} | {plan['mfu']:.1%} / {plan['hfu']:.1%} | "
        f"{published if off else ''} | {' / '.join(off)} | {plan['compile_seconds']:.0f} s |"
    )


def agreement(plans: dict[str, dict]) -> str:
    """How far predicted shares are from published ones, and whether they come in the same order (Spearman)."""
    lines = []
    for share in ("mfu", "hfu"):
        pairs = [(plans[row.config][share], getattr(row, share)) for row in ROWS if share in plans[row.config]]
        pairs = [(told, said) for told, said in pairs if said is not None]
        if len(pairs) > 2:
            told, said = np.array(pairs).T
            order = np.corrcoef(*(_ranks(values) for values in (told, said)))[0, 1]
            off = told / said - 1
            lines.append(
                f"{share.upper()}, {len(pairs)} rows: off by {off.min():+.0%} to {off.max():+.0%}, "
                f"{np.abs(off).mean():.0%} on average; rank correlation {order:.2f}"
            )
    return "\n".join(lines)


def _ranks(values: np.ndarray) -> np.ndarray:
    """From 1; equal values share their mean rank."""
    return np.array([(values < value).sum() + ((values == value).sum() + 1) / 2 for value in values])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose config contains this")
    options = parser.parse_args()
    plans = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    print("| config and machine | set | GiB a device | step | tokens/s | MFU / HFU | published | off | compiled in |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in ROWS:
        if options.only in row.config or row.config not in plans:
            plans[row.config] = compiled(row)
            RESULTS.write_text(json.dumps(plans, indent=1) + "\n")
        print(line(row, plans[row.config]), flush=True)
    print(agreement(plans))


if __name__ == "__main__":
    main()
