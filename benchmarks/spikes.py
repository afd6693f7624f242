"""A run that meets bad batches, with PaLM's remedy and without, beside one that does not.

    python -m benchmarks.spikes

Three runs of a small PaLM: `clean`; `poisoned`, in which the rows of some batches are pieces drawn at random; and
`remedied`, which meets the same rows with `train.spike_threshold` set. Draws docs/spikes.png, prints a table, writes
benchmarks/results/spikes.json. Some six minutes on two CPU cores.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

CONFIG = "configs/palm/tiny.py"
STEPS, BATCH = 700, 16
POISON = (320, 360)
"""Batches of the stream, the first and the first behind."""
SMALL = (
    *("model.num_layers=2", "model.embed_dim=96", "model.num_heads=4", "model.head_dim=24", "model.mlp_dim=256"),
    *("model.vocab_size=1024", "data.sequence_length=64", f"data.batch_size={BATCH}", f"train.num_steps={STEPS}"),
    *("optimizer.hold_steps=100", "train.log_every=5", "train.eval_every=50", "train.checkpoint_every=50"),
    *("train.checkpoints_kept=6", "sample.num_tokens=8"),
)
REMEDY = ("train.spike_threshold=8", "train.spike_window=60", "train.spike_rewind=100", "train.spike_skip=200")
RUNS = {"clean": (False, ()), "poisoned": (True, ()), "remedied": (True, REMEDY)}
RESULTS = Path(__file__).parent / "results" / "spikes.json"


def poison() -> None:
    """From now on, loaders in this process read random pieces in the rows of the bad batches."""
    from pathways_lm.data.loader import Loader

    read = Loader.rows

    def rows(self: Loader, start: int, stop: int) -> np.ndarray:
        found = read(self, start, stop)
        for place, row in enumerate(range(start, stop)):
            if POISON[0] * BATCH <= row < POISON[1] * BATCH:
                found[place] = np.random.default_rng(row).integers(259, 1024, self.sequence_length)
        return found

    Loader.rows = rows  # type: ignore[method-assign]


def one(name: str, folder: str) -> int:
    """Trains one of the runs in this process."""
    from pathways_lm.cli import main as command

    poisoned, changes = RUNS[name]
    if poisoned:
        poison()
    return command(["train", CONFIG, "--run", folder, *(f"--set={change}" for change in (*SMALL, *changes))])


def told(folder: Path) -> dict:
    """Validation losses as they led to the end, all training losses as they came, and what happened."""
    from pathways_lm.report.read import read_run

    run = read_run(folder)
    return {
        "validation": [[row["step"], row["loss"]] for row in run.validation],
        "train": [[row["step"], row["loss"]] for row in run.train],
        "events": [
            [row["step"], row["what"], row["detail"]] for row in run.events if row["what"] in ("rewind", "skipped")
        ],
    }


def draw(runs: dict[str, dict], path: Path) -> None:
    """Losses over steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.5), dpi=100, layout="constrained", facecolor="white")
    colours = {"clean": "#7f7f7f", "poisoned": "#d55e00", "remedied": "#0072b2"}
    for axes, kind in zip(figure.subplots(1, 2), ("train", "validation"), strict=True):
        for name, run in runs.items():
            steps, losses = zip(*run[kind], strict=True)
            axes.plot(steps, losses, color=colours[name], label=name, linewidth=1.4)
        axes.axvspan(*POISON, color="#d55e00", alpha=0.12, linewidth=0)
        axes.set_title(f"{kind} loss, nats per token", loc="left")
        axes.set_xlabel("step")
        axes.set_xlim(left=100)
        shown = [loss for run in runs.values() for step, loss in run[kind] if step >= 100]
        axes.set_ylim(min(shown) - 0.2, min(max(shown) + 0.2, 9))
        axes.legend()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        raise SystemExit(one(*options.one))
    runs = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in RUNS:
            subprocess.run([sys.executable, "-m", "benchmarks.spikes", "--one", name, f"{folder}/{name}"], check=True)
            runs[name] = told(Path(folder, name))
    RESULTS.write_text(json.dumps(runs, indent=1) + "\n")
    draw(runs, Path("docs/spikes.png"))
    print("| run | highest training loss after step 300 | validation at the end | what was done |\n|---|---|---|---|")
    for name, run in runs.items():
        highest = max(loss for step, loss in run["train"] if step > 300)
        done = "; ".join(detail for _, what, detail in run["events"] if what == "rewind")
        print(f"| {name} | {highest:.3f} | {run['validation'][-1][1]:.3f} | {done} |")


if __name__ == "__main__":
    main()
