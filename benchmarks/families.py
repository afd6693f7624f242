"""A hundred steps of every family's small model on the text that comes with Python: what each costs and learns.

    python -m benchmarks.families [--steps 100]

Trains every `configs/*/*tiny.py` as it stands and prints a table in Markdown: parameters, active parameters, seconds a
step, and the validation loss before the first and after the last step. Losses of different objectives do not compare.
Fails if one has not fallen.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from pathways_lm.report.read import read_run, series

HEADING = """| config | parameters | active | step | validation loss at 0 | at {steps} |
|---|---|---|---|---|---|"""


def train(config: Path, steps: int, folder: Path) -> tuple[str, bool]:
    """The row of one config, and whether its loss fell."""
    schedule = [f"--set=train.{field}={steps}" for field in ("num_steps", "eval_every", "checkpoint_every")]
    command = [sys.executable, "-m", "pathways_lm", "train", str(config), "--run", str(folder), *schedule]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    run = read_run(folder)
    at, loss = series(run.validation, "loss")
    if at.tolist() != [0, steps]:
        raise SystemExit(f"{config}: validated at steps {at.tolist()}, not at 0 and {steps}")
    _, seconds = series(run.train, "step_seconds")
    row = (
        f"| `{config}` | {run.facts['num_params']:,} | {run.facts['num_active_params']:,} | {np.median(seconds):.2f} s "
        f"| {loss[0]:.3f} | {loss[1]:.3f} |"
    )
    return row, bool(loss[1] < loss[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    print(HEADING.format(steps=options.steps), flush=True)
    fell = []
    for number, config in enumerate(sorted(Path("configs").glob("*/*tiny.py"))):
        with tempfile.TemporaryDirectory() as folder:
            row, down = train(config, options.steps, Path(folder, str(number)))
        print(row, flush=True)
        fell.append(down)
    if not all(fell):
        raise SystemExit("a loss did not fall")


if __name__ == "__main__":
    main()
