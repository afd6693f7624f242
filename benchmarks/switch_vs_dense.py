"""A dense T5 against its Switch with 8 and 32 experts: as many steps, as many FLOPs a token, the same data and draws.

    python -m benchmarks.switch_vs_dense [--draws t5|switch] [--steps 3000] [--plot docs/switch-vs-dense.png]

Trains `configs/t5/tiny.py` and `configs/switch/tiny.py` on the text that comes with Python. The initial draws are the
same for all three, T5's or Switch's smaller ones (section 2.4), so that what initialisation does is not taken for what
experts do. Groups are of a whole batch, as a device's are in the paper: with groups of one sequence, 32 experts would
drop a quarter of the tokens. Prints the losses, and how many steps each run needed to reach the dense one's last loss;
writes them to benchmarks/results/. The plot shows what stands there of both kinds of draws.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from pathways_lm.report.read import read_run, series

SWITCH = ["configs/switch/tiny.py", "--set=model.moe.group_tokens=2048"]
RUNS = {
    "dense": ["configs/t5/tiny.py"],
    "Switch, 8 experts": SWITCH,
    "Switch, 32 experts": [*SWITCH, "--set=model.moe.num_experts=32"],
}
DRAWS = {
    "t5": ["--set=model.init=t5", "--set=model.init_scale=1.0"],
    "switch": ["--set=model.init=truncated_fan_in", "--set=model.init_scale=0.1"],
}


def result_file(draws: str) -> Path:
    return Path(__file__).parent / "results" / f"switch_vs_dense_{draws}.json"


def train(arguments: list[str], steps: int, folder: Path) -> dict:
    """Steps and losses of a run."""
    schedule = [f"--set=train.num_steps={steps}", "--set=train.eval_every=50", f"--set=train.checkpoint_every={steps}"]
    command = [sys.executable, "-m", "pathways_lm", "train", *arguments, "--run", str(folder), *schedule]
    subprocess.run(command, check=True)
    run = read_run(folder)
    at, loss = series(run.validation, "loss")
    _, train_loss = series(run.train, "loss")
    _, seconds = series(run.train, "step_seconds")
    return {
        "steps": at.tolist(),
        "validation": loss.tolist(),
        "train": train_loss[-5:].mean(),
        "step_seconds": float(np.median(seconds)),
        "num_params": run.facts["num_params"],
        "num_active_params": run.facts["num_active_params"],
    }


def steps_to(curve: dict, loss: float) -> float | None:
    """The step at which the validation loss first is at or below `loss`, between two points by a straight line."""
    for index in range(1, len(curve["steps"])):
        if curve["validation"][index] <= loss:
            (a, b), (high, low) = curve["steps"][index - 1 : index + 1], curve["validation"][index - 1 : index + 1]
            return a + (b - a) * (high - loss) / (high - low)
    return None


def plot(path: Path) -> None:
    """The newest results of each kind of draws side by side, from step 50: at step 0 all are alike and far above."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    found = [(draws, file) for draws in DRAWS if (file := result_file(draws)).is_file()]
    figure, panels = plt.subplots(1, len(found), figsize=(5.5 * len(found), 4.5), layout="constrained", squeeze=False)
    for axes, (draws, file) in zip(panels[0], found, strict=True):
        for name, curve in json.loads(file.read_text()).items():
            axes.plot(curve["steps"][1:], curve["validation"][1:], label=f"{name}: {curve['validation'][-1]:.3f}")
        axes.set(title=f"{draws}'s draws".capitalize(), xlabel="step", ylabel="validation loss, nats a target")
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", choices=DRAWS, default="t5")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    curves = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, arguments) in enumerate(RUNS.items()):
            arguments = [*arguments, *DRAWS[options.draws]]
            curves[name] = train(arguments, options.steps, Path(folder, str(number)))
            result_file(options.draws).write_text(json.dumps(curves, indent=1) + "\n")
    for name, curve in curves.items():
        reached = steps_to(curve, curves["dense"]["validation"][-1])
        steps = "not reached" if reached is None else f"{reached:.0f} steps, {options.steps / reached:.2f}x fewer"
        print(
            f"{name:24} {curve['num_params']:>12,} parameters, {curve['num_active_params']:,} active  "
            f"loss {curve['validation'][-1]:.4f}  {curve['step_seconds']:.3f} s a step  dense's last loss: {steps}"
        )
    if options.plot:
        plot(options.plot)


if __name__ == "__main__":
    main()
